package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// object is what the API server stores: a typed object that never changes once it is stored.
type object = metav1.Object

// apiServer stands in for a kube-apiserver: it lists and watches, with the streamed list that client-go asks for, and
// knows no kind but those of collections. It is safe for concurrent use.
type apiServer struct {
	mu          sync.Mutex // protects below
	version     uint64
	collections map[string]*collection // by URL path
}

type collection struct {
	kind, apiVersion string
	byKey            map[string]int
	objects          []object
	watchers         map[*watcher]struct{}
}

// watcher is one watch request; queued events wait in memory, as the cache of a real server keeps them.
type watcher struct {
	selector labels.Selector // labels of objects never change here
	wake     chan struct{}

	mu    sync.Mutex // protects below
	queue [][]byte
}

func newAPIServer() *apiServer {
	s := &apiServer{version: 1, collections: map[string]*collection{}}
	for path, kind := range map[string][2]string{
		"/api/v1/pods": {"PodList", "v1"}, "/api/v1/services": {"ServiceList", "v1"}, "/api/v1/nodes": {"NodeList", "v1"},
		"/apis/discovery.k8s.io/v1/endpointslices":   {"EndpointSliceList", "discovery.k8s.io/v1"},
		"/api/v1/namespaces/istio-system/configmaps": {"ConfigMapList", "v1"},
	} {
		s.collections[path] = &collection{kind: kind[0], apiVersion: kind[1], byKey: map[string]int{}, watchers: map[*watcher]struct{}{}}
	}
	return s
}

func keyOf(o object) string { return o.GetNamespace() + "/" + o.GetName() }

// put stores new objects of one collection, or replaces those of the same name, and tells the watchers. The caller hands
// the objects over.
func (s *apiServer) put(path string, objects ...object) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.collections[path]
	for _, o := range objects {
		s.version++
		o.SetResourceVersion(strconv.FormatUint(s.version, 10))
		at, known := c.byKey[keyOf(o)]
		event := "MODIFIED"
		if known {
			c.objects[at] = o
		} else {
			event = "ADDED"
			c.byKey[keyOf(o)] = len(c.objects)
			c.objects = append(c.objects, o)
		}
		if len(c.watchers) == 0 {
			continue
		}
		line, err := encodeEvent(event, o)
		if err != nil {
			return err
		}
		for w := range c.watchers {
			if w.selector.Matches(labels.Set(o.GetLabels())) {
				w.put(line)
			}
		}
	}
	return nil
}

func encodeEvent(event string, o any) ([]byte, error) {
	raw, err := json.Marshal(struct {
		Type   string `json:"type"`
		Object any    `json:"object"`
	}{event, o})
	if err != nil {
		return nil, fmt.Errorf("encode event: %w", err)
	}
	return append(raw, '\n'), nil
}

func (w *watcher) put(line []byte) {
	w.mu.Lock()
	w.queue = append(w.queue, line)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watcher) selected(all []object) []object {
	return slices.DeleteFunc(all, func(o object) bool { return !w.selector.Matches(labels.Set(o.GetLabels())) })
}

func (w *watcher) take() [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.queue
	w.queue = nil
	return out
}

// groups are the API groups: those of the mesh are not served, so that all its kinds are known to be empty.
var groups = map[string]any{
	"/api": metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}},
	"/apis": metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{{
		Name: "discovery.k8s.io", Versions: []metav1.GroupVersionForDiscovery{{GroupVersion: "discovery.k8s.io/v1", Version: "v1"}}}}},
}

// ServeHTTP implements http.Handler.
func (s *apiServer) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	c := s.collections[req.URL.Path] // the map itself never changes
	rw.Header().Set("Content-Type", "application/json")
	if list := groups[req.URL.Path]; list != nil {
		_ = json.NewEncoder(rw).Encode(list)
		return
	}
	if c == nil {
		rw.WriteHeader(http.StatusNotFound)
		_ = json.NewEncoder(rw).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
			Status: metav1.StatusFailure, Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound})
		return
	}
	q := req.URL.Query()
	selector, err := labels.Parse(q.Get("labelSelector"))
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	if q.Get("watch") == "" {
		s.list(rw, c, &watcher{selector: selector})
		return
	}
	w := &watcher{selector: selector, wake: make(chan struct{}, 1)}
	s.mu.Lock()
	c.watchers[w] = struct{}{}
	initial, version := slices.Clone(c.objects), s.version
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(c.watchers, w)
		s.mu.Unlock()
	}()
	if q.Get("sendInitialEvents") == "true" && !sendInitial(rw, c, w.selected(initial), version) {
		return
	}
	w.serve(rw, req)
}

func (s *apiServer) list(rw http.ResponseWriter, c *collection, w *watcher) {
	s.mu.Lock()
	objects, version := slices.Clone(c.objects), s.version
	s.mu.Unlock()
	_ = json.NewEncoder(rw).Encode(map[string]any{"kind": c.kind, "apiVersion": c.apiVersion, "items": w.selected(objects),
		"metadata": metav1.ListMeta{ResourceVersion: strconv.FormatUint(version, 10)}})
}

// sendInitial writes the list as events and the bookmark that ends it; false: the client is gone.
func sendInitial(rw http.ResponseWriter, c *collection, objects []object, version uint64) bool {
	for _, o := range objects {
		line, err := encodeEvent("ADDED", o)
		if err != nil {
			return false
		}
		if _, err := rw.Write(line); err != nil {
			return false
		}
	}
	end, err := encodeEvent("BOOKMARK", map[string]any{"kind": c.kind[:len(c.kind)-len("List")], "apiVersion": c.apiVersion,
		"metadata": metav1.ObjectMeta{ResourceVersion: strconv.FormatUint(version, 10),
			Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}})
	if err != nil {
		return false
	}
	_, err = rw.Write(end)
	return err == nil
}

func (w *watcher) serve(rw http.ResponseWriter, req *http.Request) {
	flush := http.NewResponseController(rw)
	for {
		if flush.Flush() != nil {
			return
		}
		select {
		case <-req.Context().Done():
			return
		case <-w.wake:
		}
		for _, line := range w.take() {
			if _, err := rw.Write(line); err != nil {
				return
			}
		}
	}
}
