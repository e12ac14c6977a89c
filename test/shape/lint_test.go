package shape

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// banned are calls that make a component untestable or break its contract: where, what, and what to use instead.
var banned = []struct {
	rooms  []string
	except []string
	calls  []string
	why    string
}{
	{
		rooms:  []string{"ztunnel", "controller"},
		except: []string{"ztunnel/clock"},
		calls:  []string{"time.Now", "time.After", "time.AfterFunc", "time.NewTimer", "time.NewTicker", "time.Tick", "time.Since", "time.Until"},
		why:    "take the clock from the configuration",
	},
	{
		rooms: []string{"ztunnel", "controller"},
		calls: []string{"net.Dial", "net.DialTimeout", "net.DialTCP", "net.Listen", "net.ListenTCP", "net.ListenUDP", "net.ListenUnix"},
		why:   "take the dialer or listener from the configuration",
	},
	{
		rooms: []string{"ztunnel", "controller", "nodeagent", "cni", "cmd"},
		calls: []string{"time.Sleep"},
		why:   "wait for the event, with a deadline",
	},
	{
		rooms:  []string{"ztunnel", "controller", "nodeagent", "cni"},
		except: []string{"cni/plugin"},
		calls:  []string{"os.Exit", "log.Fatal", "log.Fatalf"},
		why:    "return the error; only cmd ends the process",
	},
	{
		rooms:  []string{"ztunnel", "controller", "cni", "nodeagent"},
		except: []string{"nodeagent/netns"},
		calls:  []string{"unix.Setns", "unix.Unshare", "netns.Set", "syscall.Unshare"},
		why:    "only nodeagent/netns enters namespaces",
	},
}

type call struct {
	file string
	line int
	name string
}

// calls lists what every non-test file of a package calls, by "package.Function".
func calls(t *testing.T, p pkg) []call {
	t.Helper()
	var out []call
	for _, name := range p.GoFiles {
		path := filepath.Join(p.Dir, name)
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if generated(src) {
			continue
		}
		out = append(out, callsOf(t, path, src)...)
	}
	return out
}

func generated(src []byte) bool {
	head, _, _ := bytes.Cut(src, []byte("\npackage "))
	return bytes.Contains(head, []byte("DO NOT EDIT"))
}

func callsOf(t *testing.T, path string, src []byte) []call {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, src, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var out []call
	ast.Inspect(f, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok {
				out = append(out, call{path, fset.Position(n.Pos()).Line, x.Name + "." + sel.Sel.Name})
			}
		}
		return true
	})
	return out
}

func findings(room string, list []call) []string {
	var out []string
	for _, rule := range banned {
		if !anyWithin(room, rule.rooms) || anyWithin(room, rule.except) {
			continue
		}
		for _, c := range list {
			for _, b := range rule.calls {
				if c.name == b {
					out = append(out, strings.Join([]string{c.file, ": ", c.name, ": ", rule.why}, ""))
				}
			}
		}
	}
	return out
}

func anyWithin(p string, rooms []string) bool {
	for _, r := range rooms {
		if within(p, r) {
			return true
		}
	}
	return false
}

func TestBannedCalls(t *testing.T) {
	for _, p := range packages(t) {
		for _, f := range findings(p.ImportPath, calls(t, p)) {
			t.Error(f)
		}
	}
}

// TestBannedCallsRefuse shows that the rule can fail.
func TestBannedCallsRefuse(t *testing.T) {
	src := []byte("package x\n\nimport (\"net\"; \"time\")\n\nfunc f() { time.Sleep(1); _ = time.Now; net.Dial(\"\", \"\") }\n")
	if got := findings("ztunnel/proxy", callsOf(t, "x.go", src)); len(got) != 3 {
		t.Errorf("got %q, want three findings", got)
	}
}

// TestFileSizes keeps files readable: 500 lines, 80 lines a function (generated code and tests apart).
func TestFileSizes(t *testing.T) {
	for _, p := range packages(t) {
		for _, name := range p.GoFiles {
			path := filepath.Join(p.Dir, name)
			src, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if generated(src) {
				continue
			}
			if n := bytes.Count(src, []byte("\n")); n > 500 {
				t.Errorf("%s: %d lines", path, n)
			}
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, path, src, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok {
					if n := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1; n > 80 {
						t.Errorf("%s: function %s has %d lines", path, fn.Name.Name, n)
					}
				}
			}
		}
	}
}
