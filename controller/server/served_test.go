package server

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/watch"
	"github.com/undermesh/undermesh/controller/xds"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

func askServed(t *testing.T, h http.Handler, query url.Values) (int, Served, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, ServedPath+"?"+query.Encode(), nil))
	var out Served
	if w.Code == http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
			t.Fatalf("%v: %s", err, w.Body)
		}
	}
	return w.Code, out, w.Body.String()
}

func TestServed(t *testing.T) {
	c := compile.New(compile.Config{})
	d := c.Apply([]model.Event{{Kind: model.KindService, Name: model.Name{Namespace: "shop", Name: "reviews"}, Object: &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "reviews"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Name: "grpc", Port: 80}}}}}})
	store := xds.NewStore(xds.StoreConfig{Clock: clock.System()})
	publisher{store: store}.apply(d)
	h := servedHandler(store)

	code, all, _ := askServed(t, h, url.Values{"type": {api.AddressType, api.MeshSettingsType}})
	if code != http.StatusOK || all.Generation != d.Generation || len(all.Resources) != 2 {
		t.Fatal(code, all)
	}
	for _, r := range all.Resources {
		if r.Error != "" || r.Version == "" || len(r.Resource) == 0 {
			t.Errorf("%s %s: %+v", r.Type, r.Name, r)
		}
	}
	_, one, _ := askServed(t, h, url.Values{"type": {api.AddressType}, "name": {"shop/reviews.shop.svc.cluster.local"}})
	if len(one.Resources) != 1 || !strings.Contains(string(one.Resources[0].Resource), "reviews.shop.svc.cluster.local") {
		t.Error(one)
	}
	if code, _, said := askServed(t, h, nil); code != http.StatusBadRequest || !strings.Contains(said, "type") {
		t.Error(code, said)
	}
	if code, none, _ := askServed(t, h, url.Values{"type": {"unknown"}}); code != http.StatusOK || len(none.Resources) != 0 {
		t.Error(code, none)
	}
}

// TestServedIsWhatIsSent: what proxy-config reads is, byte for byte, what a stream is sent: of every type, and every resource
// that the golden inputs compile to.
func TestServedIsWhatIsSent(t *testing.T) {
	inputs, err := filepath.Glob("../compile/testdata/*.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatal("no inputs", err)
	}
	types := []string{api.RouteRuleType, api.AddressType, api.AuthorizationType, api.MeshSettingsType, api.WorkloadSettingsType, api.ScopeType, api.CallRuleType}
	total := map[string]int{}
	for _, input := range inputs {
		all := compiledFrom(t, input)
		store := xds.NewStore(xds.StoreConfig{Clock: clock.System()})
		publisher{store: store}.apply(compile.Delta{Generation: 1, Upserts: all})
		publish, dial, _ := ambientWorld(t)
		publish(all)
		for _, typ := range types {
			var names []string
			for _, r := range all {
				if r.Type == typ {
					names = append(names, r.Name)
				}
			}
			if len(names) == 0 {
				continue
			}
			a := newAmbient(t, dial())
			a.send(typ, func(r *discovery.DeltaDiscoveryRequest) { r.ResourceNamesSubscribe = names })
			answer, err := a.stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			sent := map[string]*discovery.Resource{}
			for _, r := range answer.GetResources() {
				sent[r.GetName()] = r
			}
			_, shown, _ := askServed(t, servedHandler(store), url.Values{"type": {typ}})
			if len(shown.Resources) != len(names) {
				t.Errorf("%s %s: %d are shown of %d", input, typ, len(shown.Resources), len(names))
			}
			for _, r := range shown.Resources {
				total[typ]++
				sameBytes(t, r, sent[r.Name])
			}
		}
	}
	for _, typ := range types {
		if total[typ] == 0 {
			t.Errorf("no %s was compared", typ)
		}
	}
	t.Log(total)
}

// compiledFrom are the resources that a file compiles to.
func compiledFrom(t *testing.T, path string) []compile.Resource {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return compiled(t, text).Upserts
}

// compiled is what a directory with that file alone compiles to.
func compiled(t *testing.T, text []byte) compile.Delta {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f.yaml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	view, err := configdir.New(configdir.Config{Dir: dir}).Load()
	if err != nil {
		t.Fatal(err)
	}
	return compile.New(compile.Config{}).Apply(watch.Events(nil, view))
}

// sameBytes encodes what is shown again, and compares it with what was sent.
func sameBytes(t *testing.T, shown ServedResource, sent *discovery.Resource) {
	t.Helper()
	if sent == nil || sent.GetVersion() != shown.Version {
		t.Errorf("%s %s: version %s is shown, and %s is sent", shown.Type, shown.Name, shown.Version, sent.GetVersion())
		return
	}
	m, err := decoded(shown.Type, nil)
	if err == nil {
		err = protojson.Unmarshal(shown.Resource, m)
	}
	if err != nil {
		t.Fatalf("%s %s: %v", shown.Type, shown.Name, err)
	}
	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, sent.GetResource().GetValue()) {
		t.Errorf("%s %s: what is shown has other bytes than what is sent", shown.Type, shown.Name)
	}
}
