package plugin

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/undermesh/undermesh/cni/wire"
)

const prevResult = `{"cniVersion":%q,"interfaces":[{"name":"veth0"},{"name":"eth0","sandbox":"/run/netns/a"}],
"ips":[{%s"interface":1,"address":"10.0.0.5/24"},{%s"interface":0,"address":"10.0.0.1/24"}],"routes":[{"dst":"0.0.0.0/0"}]}`

// agent answers the plugin as told and records what it was asked.
type agent struct {
	mu    sync.Mutex
	asked []string
	last  wire.Request
	code  int
	reply wire.Response
}

func (a *agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, r.URL.Path)
	if err := wire.ReadJSON(r.Body, &a.last); err != nil {
		a.reply.Error = err.Error()
	}
	w.WriteHeader(a.code)
	_ = json.NewEncoder(w).Encode(a.reply)
}

// serve starts an agent at socket.
func serve(t *testing.T, socket string) *agent {
	t.Helper()
	a := &agent{code: http.StatusOK}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: a}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	return a
}

// lab is a plugin's surroundings.
type lab struct {
	t                    *testing.T
	socket, digest, cniV string
	exclude              []string
}

func newLab(t *testing.T) *lab {
	dir := t.TempDir()
	return &lab{t: t, socket: filepath.Join(dir, "a.sock"), digest: filepath.Join(dir, "digest.json"), cniV: "1.1.0"}
}

func (l *lab) args(podArgs string) *skel.CmdArgs {
	version := ""
	if strings.HasPrefix(l.cniV, "0.") {
		version = `"version":"4",`
	}
	exclude, err := json.Marshal(l.exclude)
	if err != nil {
		l.t.Fatal(err)
	}
	conf := fmt.Sprintf(`{"cniVersion":%q,"name":"kbr","type":"undermesh-cni","socket":%q,"digest":%q,"excludeNamespaces":%s,"logFile":%q,"prevResult":%s}`,
		l.cniV, l.socket, l.digest, exclude, l.socket+".log", fmt.Sprintf(prevResult, l.cniV, version, version))
	return &skel.CmdArgs{ContainerID: "c1", Netns: "/run/netns/a", IfName: "eth0", Args: podArgs, StdinData: []byte(conf)}
}

const podArgs = "IgnoreUnknown=1;K8S_POD_NAMESPACE=foo;K8S_POD_NAME=a;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1"

// stdout runs f and returns what it prints there.
func stdout(t *testing.T, f func() error) (string, error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stdout
	os.Stdout = w
	err = f()
	os.Stdout = old
	_ = w.Close()
	out, rerr := io.ReadAll(r)
	if rerr != nil {
		t.Fatal(rerr)
	}
	return string(out), err
}

func TestAddPassesTheResultThroughInEveryVersion(t *testing.T) {
	for _, v := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(v, func(t *testing.T) {
			l := newLab(t)
			l.cniV = v
			a := serve(t, l.socket)
			out, err := stdout(t, func() error { return Funcs(t.Context()).Add(l.args(podArgs)) })
			if err != nil {
				t.Fatal(err)
			}
			var got, want map[string]any
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				t.Fatalf("standard output is not one result: %v\n%s", err, out)
			}
			version := ""
			if v[0] == '0' {
				version = `"version":"4",`
			}
			if err := json.Unmarshal(fmt.Appendf(nil, prevResult, v, version, version), &want); err != nil {
				t.Fatal(err)
			}
			delete(got, "dns") // an empty one may be printed
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("got  %v\nwant %v", got, want)
			}
			r := a.last
			if r.Pod() != "foo/a" || r.PodUID != "u1" || r.ContainerID != "c1" || r.Netns != "/run/netns/a" ||
				len(r.IPs) != 1 || r.IPs[0].String() != "10.0.0.5" {
				t.Errorf("asked: %+v", r)
			}
		})
	}
}

func TestAddFailsWithTheAgentsWords(t *testing.T) {
	l := newLab(t)
	if err := wire.WriteDigest(l.digest, wire.Digest{Open: []string{"foo"}}); err != nil {
		t.Fatal(err)
	}
	a := serve(t, l.socket)
	a.code, a.reply.Error = http.StatusServiceUnavailable, "enrol pod foo/a: no ztunnel connection"
	out, err := stdout(t, func() error { return Funcs(t.Context()).Add(l.args(podArgs)) })
	// The agent is there and says no: the digest must not overrule it.
	if err == nil || !strings.Contains(err.Error(), "foo/a: no ztunnel connection") || out != "" {
		t.Errorf("%q %v", out, err)
	}
}

func TestAgentAway(t *testing.T) {
	for name, tc := range map[string]struct {
		digest  *wire.Digest
		exclude []string
		starts  bool
	}{
		"no digest":                 {},
		"namespace outside":         {digest: &wire.Digest{Open: []string{"foo"}}, starts: true},
		"namespace enrolled":        {digest: &wire.Digest{Enrolled: []string{"foo"}}},
		"namespace new":             {digest: &wire.Digest{Open: []string{"bar"}}},
		"excluded, no digest":       {exclude: []string{"foo"}, starts: true},
		"another one excluded":      {exclude: []string{"kube-system"}},
		"excluded before enrolment": {digest: &wire.Digest{Enrolled: []string{"foo"}}, exclude: []string{"foo"}, starts: true},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.exclude = tc.exclude
			if tc.digest != nil {
				if err := wire.WriteDigest(l.digest, *tc.digest); err != nil {
					t.Fatal(err)
				}
			}
			out, err := stdout(t, func() error { return Funcs(t.Context()).Add(l.args(podArgs)) })
			if tc.starts != (err == nil) || tc.starts != (out != "") {
				t.Fatalf("started %v: %v", err == nil, err)
			}
			if err != nil && !strings.Contains(err.Error(), "foo/a") {
				t.Errorf("error does not name the pod: %v", err)
			}
		})
	}
}

func TestDelAndGCNeverFail(t *testing.T) {
	l := newLab(t)
	f := Funcs(t.Context())
	broken := l.args(podArgs)
	broken.StdinData = []byte("{")
	for name, run := range map[string]func() error{
		"del without agent":   func() error { return f.Del(l.args(podArgs)) },
		"del with bad config": func() error { return f.Del(broken) },
		"del with bad args":   func() error { return f.Del(l.args("K8S_POD_NAME")) },
		"gc without agent":    func() error { return f.GC(l.args("")) },
		"gc with bad config":  func() error { return f.GC(broken) },
	} {
		if out, err := stdout(t, run); err != nil || out != "" {
			t.Errorf("%s: %q %v", name, out, err)
		}
	}
	a := serve(t, l.socket)
	a.code, a.reply.Error = http.StatusInternalServerError, "no"
	if err := f.Del(l.args(podArgs)); err != nil || len(a.asked) != 1 || a.asked[0] != wire.PathDel {
		t.Errorf("del that the agent refuses: %v, asked %v", err, a.asked)
	}
}

func TestStatusAndCheck(t *testing.T) {
	l := newLab(t)
	f := Funcs(t.Context())
	if err := f.Status(l.args("")); err == nil {
		t.Error("STATUS is fine with neither agent nor digest")
	}
	if err := wire.WriteDigest(l.digest, wire.Digest{}); err != nil {
		t.Fatal(err)
	}
	if err := f.Status(l.args("")); err != nil {
		t.Errorf("STATUS keeps pods outside the mesh from starting: %v", err)
	}
	if err := f.Check(l.args(podArgs)); err == nil {
		t.Error("CHECK is fine without the agent")
	}
	a := serve(t, l.socket)
	if err := f.Check(l.args(podArgs)); err != nil {
		t.Error(err)
	}
	a.code, a.reply.Error = http.StatusInternalServerError, "check pod foo/a: pod is not captured"
	if err := f.Check(l.args(podArgs)); err == nil || !strings.Contains(err.Error(), "foo/a") {
		t.Errorf("CHECK: %v", err)
	}
	if err := f.Status(l.args("")); err == nil {
		t.Error("STATUS is fine although the agent is not")
	}
}

func TestNotChained(t *testing.T) {
	a := newLab(t).args(podArgs)
	a.StdinData = []byte(`{"cniVersion":"1.0.0","name":"x","type":"undermesh-cni"}`)
	if err := Funcs(t.Context()).Add(a); err == nil || !strings.Contains(err.Error(), "prevResult") {
		t.Errorf("ADD without prevResult: %v", err)
	}
}
