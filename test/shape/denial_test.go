package shape

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// denials finds what refuses a connection without a reason of the registry: in the proxy a Refusal without one or with
// reason.None, a CONNECT that is rejected without the header that names the reason, a reset beside those that refusal.go
// makes; in the policy a path that is Reject without Refused.
func denials(t *testing.T, room, path string, src []byte) (out []string) {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, src, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	text := func(n ast.Node) string {
		return string(src[fset.Position(n.Pos()).Offset:fset.Position(n.End()).Offset])
	}
	found := func(n ast.Node, what string) {
		out = append(out, fset.Position(n.Pos()).String()+": "+what)
	}
	proxy := within(room, "ztunnel") && !within(room, "ztunnel/hbone")
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CompositeLit:
			if proxy && n.Type != nil && text(n.Type) == "Refusal" && filepath.Base(path) != "refusal.go" && !strings.Contains(text(n), "Reason: ") {
				found(n, "a Refusal without Reason")
			}
		case *ast.CallExpr:
			name := text(n.Fun)
			switch {
			case !proxy:
			case (name == "refused" || name == "refusedf") && (text(n.Args[0]) == "reason.None" || text(n.Args[0]) == "0"):
				found(n, "a refusal for no reason")
			case strings.HasSuffix(name, ".Reject") && !strings.Contains(text(n), "reasonHeader"):
				found(n, "a CONNECT rejected without the reason's header")
			case strings.HasSuffix(name, ".SetLinger") && text(n.Args[0]) == "0" && filepath.Base(path) != "refusal.go":
				found(n, "a reset that no refusal makes")
			}
		case *ast.AssignStmt:
			if s := text(n); within(room, "controller/policy") && strings.Contains(s, "Reject") && strings.Contains(s, ".Kind") && !strings.Contains(s, ".Refused") {
				found(n, "a rejected path without Refused")
			}
		}
		return true
	})
	return out
}

func TestDenialsHaveReasons(t *testing.T) {
	for _, p := range packages(t) {
		for _, name := range p.GoFiles {
			path := filepath.Join(p.Dir, name)
			src, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range denials(t, p.ImportPath, path, src) {
				t.Error(f)
			}
		}
	}
}

// TestDenialsRefuse shows that each rule can fail.
func TestDenialsRefuse(t *testing.T) {
	for room, body := range map[string]string{
		"ztunnel/proxy":     "_ = &Refusal{}; refused(reason.None, nil); refusedf(0, x); req.Reject(503, nil); c.SetLinger(0)",
		"controller/policy": "p.Kind, p.Reason = Reject, why",
	} {
		got := denials(t, room, "x.go", []byte("package x\n\nfunc f() { "+body+" }\n"))
		if want := strings.Count(body, ";") + 1; len(got) != want {
			t.Errorf("%s: got %q, want %d findings", room, got, want)
		}
	}
}
