package shape

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/undermesh/undermesh/"

// leaves may be imported from every room: components meet only in them.
var leaves = []string{
	"bpf/include", "cni/wire", "nodeagent/netns", "nodeagent/zds", "controller/api", "controller/client", "controller/policy",
	"controller/configdir", "ztunnel/clock",
}

// doors lists, for a room, the packages of ours that it may import beside the leaves. A room is the longest matching prefix.
var doors = map[string][]string{
	"bpf":                 {},
	"cni/plugin":          {},
	"cni/install":         {},
	"nodeagent/datapath":  {"bpf", "nodeagent/maps"},
	"nodeagent/maps":      {},
	"nodeagent/enroll":    {"nodeagent/datapath", "nodeagent/maps"},
	"nodeagent/server":    {"nodeagent/enroll", "nodeagent/datapath", "cni/install"},
	"ztunnel":             {"ztunnel"},
	"controller/jwks":     {},
	"controller/model":    {"controller/validate", "controller/jwks"},
	"controller/compile":  {"controller/model", "controller/validate", "controller/jwks"},
	"controller/validate": {"controller/model"},
	"controller/watch":    {"controller/model", "controller/validate", "controller/jwks"},
	"controller/quota":    {},
	"controller/xds":      {"controller/quota"},
	"controller/ca":       {"controller/quota"},
	"controller/status":   {"controller/model", "controller/validate"},
	"controller/webhook":  {"controller/model", "controller/validate", "controller/quota"},
	"controller/server":   {"controller"},
	"deploy":              {},
	"cmd":                 {"bpf", "cmd/controller/app", "cmd/memory", "cni", "controller", "deploy", "nodeagent", "ztunnel"},
	"test":                {"bpf", "cmd", "cni", "controller", "deploy", "nodeagent", "test", "ztunnel"},

	"controller/credentials": {"controller/compile", "controller/model"},
}

// leafDoors is what leaves themselves may import of ours.
var leafDoors = map[string][]string{
	"controller/client":    {"controller/api", "ztunnel/clock"},
	"controller/policy":    {"controller/api", "controller/client"},
	"controller/api":       {"controller/api"},
	"controller/configdir": {"controller/api", "ztunnel/clock"},
	"nodeagent/zds":        {"nodeagent/zds", "ztunnel/clock"},
	"nodeagent/netns":      {},
	"cni/wire":             {},
	"ztunnel/clock":        {},
	"bpf/include":          {},
}

type pkg struct {
	ImportPath string
	Imports    []string
	GoFiles    []string
	Dir        string
	Doc        string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,GoFiles,Dir,Doc", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("list packages: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module)
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("only %d packages were listed", len(all))
	}
	return all
}

func within(p, room string) bool { return p == room || strings.HasPrefix(p, room+"/") }

// room finds the longest prefix of p among the keys of m; "" when there is none.
func room[V any](p string, m map[string]V) string {
	best := ""
	for r := range m {
		if within(p, r) && len(r) > len(best) {
			best = r
		}
	}
	return best
}

// violation says why package p may not import q, or "".
func violation(p, q string) string {
	allowed := doors[room(p, doors)]
	if leaf := room(p, leafDoors); leaf != "" && len(leaf) >= len(room(p, doors)) {
		if within(q, leaf) || slices.ContainsFunc(leafDoors[leaf], func(a string) bool { return within(q, a) }) {
			return ""
		}
		return "leaf " + p + " imports " + q
	}
	if room(p, doors) == "" {
		return p + " is in no room of the architecture"
	}
	if within(q, "bpf") && !within(p, "bpf") && !within(p, "nodeagent/datapath") && !within(p, "test") && !within(q, "bpf/include") {
		return p + " imports " + q + ": only nodeagent/datapath may"
	}
	own := strings.Join(strings.SplitN(p, "/", 3)[:min(2, strings.Count(p, "/")+1)], "/")
	for _, a := range slices.Concat(allowed, leaves, []string{own}) {
		if within(q, a) {
			return ""
		}
	}
	return p + " imports " + q + " through no door"
}

func TestDoors(t *testing.T) {
	for _, p := range packages(t) {
		for _, q := range p.Imports {
			if q, ours := strings.CutPrefix(q, module); ours {
				if v := violation(p.ImportPath, q); v != "" {
					t.Error(v)
				}
			}
		}
	}
}

// TestDoorsRefuse shows that the rules can fail.
func TestDoorsRefuse(t *testing.T) {
	for _, bad := range [][2]string{
		{"ztunnel/proxy", "nodeagent/datapath"}, {"nodeagent/enroll", "ztunnel/proxy"}, {"controller/compile", "controller/xds"},
		{"controller/policy", "controller/model"}, {"cni/plugin", "nodeagent/server"}, {"nodeagent/enroll", "bpf/connect"},
		{"nodeagent/zds", "nodeagent/datapath"}, {"utils", "controller/api"}, {"controller/api", "controller/client"},
	} {
		if violation(bad[0], bad[1]) == "" {
			t.Errorf("%s may import %s", bad[0], bad[1])
		}
	}
	for _, good := range [][2]string{{"ztunnel/proxy", "controller/policy"}, {"nodeagent/datapath", "bpf/connect"}, {"cmd/ztunnel", "ztunnel/proxy"}} {
		if v := violation(good[0], good[1]); v != "" {
			t.Error(v)
		}
	}
}

// TestNodesKnowWhatIsCompiled: ztunnel writes rules as JSON, which it can only do with every message that the compiler puts into them.
func TestNodesKnowWhatIsCompiled(t *testing.T) {
	const envoy = "github.com/envoyproxy/go-control-plane/envoy/"
	linked := func(of string) map[string]bool {
		cmd := exec.Command("go", "list", "-deps", of)
		cmd.Dir = "../.."
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("list what %s links: %v", of, err)
		}
		all := map[string]bool{}
		for p := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(p, envoy) {
				all[p] = true
			}
		}
		return all
	}
	node, compiled := linked("./cmd/ztunnel"), linked("./controller/compile")
	if len(compiled) == 0 {
		t.Fatal("the compiler links nothing of Envoy")
	}
	for p := range compiled {
		if !node[p] {
			t.Errorf("cmd/ztunnel does not link %s, which controller/compile does", p)
		}
	}
}

func TestPackageComments(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}
