package server

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/xds"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// TestDebugDoor: it says who is connected, to this network namespace only, and not to a page that a browser was led to.
func TestDebugDoor(t *testing.T) {
	store := xds.NewStore(xds.StoreConfig{Clock: clock.System()})
	err := store.Apply(7, []xds.Resource{{Type: api.MeshSettingsType, Name: api.MeshSettingsName, Message: &settings.MeshSettings{}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	h := debugHandler("istiod-a", store, func() []xds.ClientStatus { return []xds.ClientStatus{{ID: "n"}} })
	for host, want := range map[string]int{"127.0.0.1:41234": 200, "localhost:15004": 200, "[::1]:15004": 200, "localhost": 200,
		"attacker.example:15004": 403, "10.0.0.7:15004": 403, "": 403} {
		req := httptest.NewRequest(http.MethodGet, SyncPath, nil)
		req.Host = host
		rec := httptest.NewRecorder()
		if h.ServeHTTP(rec, req); rec.Code != want {
			t.Errorf("%q: %d, want %d", host, rec.Code, want)
			continue
		}
		var got SyncStatus
		if want == 200 && (json.Unmarshal(rec.Body.Bytes(), &got) != nil || got.Replica != "istiod-a" || got.Generation != 7 || len(got.Clients) != 1) {
			t.Errorf("%q: %s", host, rec.Body)
		}
	}
	for addr, bad := range map[string]bool{"": false, "127.0.0.1:15004": false, "[::1]:15004": false, "localhost:1": false,
		":15004": true, "0.0.0.0:15004": true, "10.0.0.1:15004": true, "127.0.0.1": true} {
		if err := checkDebugAddr(addr); (err != nil) != bad || bad && !strings.Contains(err.Error(), "DebugAddr") {
			t.Errorf("%q: %v", addr, err)
		}
	}
}
