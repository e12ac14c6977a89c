package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// ServedPath is where the debug door shows the resources that are served: ?type=TYPE, several times, and optionally
// &name=NAME, several times. The answer is a Served.
const ServedPath = "/debug/served"

// Served is what one replica serves of the types that were asked for.
type Served struct {
	Generation uint64           `json:"generation"`
	Resources  []ServedResource `json:"resources"`
}

// ServedResource is one resource as clients get it.
type ServedResource struct {
	Type     string          `json:"type"`
	Name     string          `json:"name"`
	Version  string          `json:"version"`
	Aliases  []string        `json:"aliases,omitempty"`
	Resource json.RawMessage `json:"resource,omitempty"` // in the JSON of protobuf
	Error    string          `json:"error,omitempty"`    // why there is no Resource
}

// dumper is the store.
type dumper interface {
	Dump(typ string) (generation uint64, all []*discovery.Resource)
}

// servedHandler writes one resource after the other: a large mesh is not in memory a second time as text.
func servedHandler(store dumper) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		types := r.URL.Query()["type"]
		if len(types) == 0 {
			http.Error(w, "type is missing", http.StatusBadRequest)
			return
		}
		wanted := map[string]bool{}
		for _, n := range r.URL.Query()["name"] {
			wanted[n] = true
		}
		w.Header().Set("Content-Type", "application/json")
		separator, generation := "", uint64(0)
		fmt.Fprint(w, `{"resources":[`)
		for _, typ := range types {
			g, all := store.Dump(typ)
			generation = g
			for _, res := range all {
				if len(wanted) > 0 && !wanted[res.GetName()] {
					continue
				}
				text, err := json.Marshal(present(typ, res))
				if err != nil {
					return // the answer stays unfinished, and is no JSON
				}
				if _, err := fmt.Fprintf(w, "%s\n%s", separator, text); err != nil {
					return
				}
				separator = ","
			}
		}
		fmt.Fprintf(w, "\n],\"generation\":%d}\n", generation)
	}
}

func present(typ string, r *discovery.Resource) ServedResource {
	out := ServedResource{Type: typ, Name: r.GetName(), Version: r.GetVersion(), Aliases: r.GetAliases()}
	m, err := decoded(typ, r.GetResource().GetValue())
	if err == nil {
		out.Resource, err = protojson.Marshal(m)
	}
	if err != nil {
		out.Resource, out.Error = nil, err.Error()
	}
	return out
}

func decoded(typ string, raw []byte) (proto.Message, error) {
	t, err := protoregistry.GlobalTypes.FindMessageByURL(typ)
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", typ[strings.LastIndex(typ, "/")+1:], err)
	}
	m := t.New().Interface()
	if err := proto.Unmarshal(raw, m); err != nil {
		return nil, fmt.Errorf("decode %s: %w", typ[strings.LastIndex(typ, "/")+1:], err)
	}
	return m, nil
}
