package server

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
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

	code, all, _ := askServed(t, h, url.Values{"type": {api.ClusterType, api.RouteType}})
	if code != http.StatusOK || all.Generation != d.Generation || len(all.Resources) != 4 {
		t.Fatal(code, all)
	}
	for _, r := range all.Resources {
		if r.Error != "" || r.Version == "" || len(r.Resource) == 0 {
			t.Errorf("%s %s: %+v", r.Type, r.Name, r)
		}
	}
	_, one, _ := askServed(t, h, url.Values{"type": {api.ClusterType}, "name": {"outbound|80||reviews.shop.svc.cluster.local"}})
	if len(one.Resources) != 1 || !strings.Contains(string(one.Resources[0].Resource), "http2ProtocolOptions") {
		t.Error(one)
	}
	if code, _, said := askServed(t, h, nil); code != http.StatusBadRequest || !strings.Contains(said, "type") {
		t.Error(code, said)
	}
	if code, none, _ := askServed(t, h, url.Values{"type": {"unknown"}}); code != http.StatusOK || len(none.Resources) != 0 {
		t.Error(code, none)
	}
}
