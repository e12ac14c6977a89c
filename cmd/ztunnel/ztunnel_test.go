package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/undermesh/undermesh/nodeagent/zds"
	"github.com/undermesh/undermesh/ztunnel/drain"
)

const mainVar = "ZTUNNEL_TEST_MAIN"

// TestMain lets the test binary be ztunnel: supervisor and worker.
func TestMain(m *testing.M) {
	if os.Getenv(mainVar) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// process is a running ztunnel with a controller; the test plays the node agent.
type process struct {
	t                   *testing.T
	dir                 string
	admin, stats, ready string
	cmd                 *exec.Cmd
	out                 *buffer
	ended               chan error
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func startZtunnel(t *testing.T, dir, controller string) *process {
	t.Helper()
	admin, stats, ready := freeAddr(t), freeAddr(t), freeAddr(t)
	self, err := os.Executable()
	must(t, err)
	p := launch(t, exec.Command(self, "--node-name=n1", "--zds="+filepath.Join(dir, "zds"), "--xds-addr="+controller,
		"--xds-root="+filepath.Join(dir, "root.pem"), "--token="+filepath.Join(dir, "token"),
		"--admin-addr="+admin, "--stats-addr="+stats, "--ready-addr="+ready, "--drain-timeout=2s"))
	p.dir, p.admin, p.stats, p.ready = dir, admin, stats, ready
	return p
}

// launch starts cmd, which makes this test binary ztunnel, and ends it with the test.
func launch(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, out: &buffer{}, ended: make(chan error, 1)}
	p.cmd.Env = append(os.Environ(), mainVar+"=1")
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	must(t, p.cmd.Start())
	go func() { p.ended <- p.cmd.Wait() }()
	t.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		if t.Failed() {
			t.Log(p.out.String())
		}
	})
	return p
}

// serveZDS plays a node agent without pods.
func serveZDS(t *testing.T, dir string) {
	t.Helper()
	s := zds.NewServer(zds.ServerConfig{
		Path: filepath.Join(dir, "zds"), Log: slog.New(slog.DiscardHandler), Snapshot: func() []zds.Workload { return nil },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (p *process) get(addr, path string) (int, string) {
	r, err := http.Get("http://" + addr + path)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	body, _ := io.ReadAll(r.Body)
	return r.StatusCode, string(body)
}

// await polls until ok, and says after 20 s what it waited for.
func (p *process) await(what string, ok func() bool) {
	p.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			p.t.Fatalf("waited 20 s for %s", what)
		}
	}
}

func (p *process) isReady() bool {
	code, _ := p.get(p.ready, "/healthz/ready")
	return code == 200
}

// worker is the pid in the newest "worker started" line.
func (p *process) worker() int {
	pid := 0
	for line := range strings.Lines(p.out.String()) {
		var l struct {
			Msg string
			Pid int
		}
		if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "worker started" {
			pid = l.Pid
		}
	}
	return pid
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

func TestReadyOnlyWithMeshAndPods(t *testing.T) {
	dir := t.TempDir()
	c := startController(t, dir)
	p := startZtunnel(t, dir, c.addr)
	p.await("the mesh, and the pods alone missing", func() bool {
		code, body := p.get(p.ready, "/healthz/ready")
		return code == 503 && strings.HasPrefix(body, "pods: the node agent has not sent its pods")
	})
	serveZDS(t, dir)
	p.await("readiness", p.isReady)
	code, body := p.get(p.admin, "/config_dump")
	var dump struct {
		Mesh      []struct{ TrustDomain string }
		Workloads []struct{ Name, Namespace string }
		Pods      []any
	}
	if err := json.Unmarshal([]byte(body), &dump); err != nil || code != 200 || len(dump.Workloads) != 1 || dump.Workloads[0].Name != "sleep" ||
		len(dump.Mesh) != 1 || dump.Mesh[0].TrustDomain != "cluster.local" {
		t.Errorf("%d, %v: %s", code, err, body)
	}
	if code, body := p.get(p.stats, "/stats/prometheus"); code != 200 || !strings.Contains(body, "istio_build{component=\"ztunnel\"") {
		t.Errorf("stats: %d", code)
	}
	if code, _ := p.get(p.stats, "/config_dump"); code != 404 {
		t.Errorf("the dump is served to the cluster: %d", code)
	}
}

func TestCrashIsAnsweredInMilliseconds(t *testing.T) {
	dir := t.TempDir()
	c := startController(t, dir)
	serveZDS(t, dir)
	p := startZtunnel(t, dir, c.addr)
	p.await("readiness", p.isReady)
	first := p.worker()
	if first == 0 || first == p.cmd.Process.Pid {
		t.Fatalf("worker is %d, supervisor %d", first, p.cmd.Process.Pid)
	}
	killed := time.Now()
	must(t, syscall.Kill(first, syscall.SIGKILL))
	p.await("another worker", func() bool { return p.worker() != first })
	p.await("readiness after the crash", p.isReady)
	t.Logf("ready %s after the crash", time.Since(killed))
	if !strings.Contains(p.out.String(), `"msg":"worker crashed"`) {
		t.Error("the crash was not logged")
	}
	must(t, p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-p.ended:
		if err != nil {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("did not end in 20 s")
	}
	if err := syscall.Kill(p.worker(), 0); err != syscall.ESRCH {
		t.Errorf("the worker is still there: %v", err)
	}
}

// The worker does not outlive its supervisor by more than the time to drain.
func TestWorkerEndsWithItsSupervisor(t *testing.T) {
	dir := t.TempDir()
	c := startController(t, dir)
	serveZDS(t, dir)
	p := startZtunnel(t, dir, c.addr)
	p.await("readiness", p.isReady)
	worker := p.worker()
	must(t, p.cmd.Process.Kill())
	<-p.ended
	p.await("the end of the worker", func() bool { return gone(worker) })
	if !strings.Contains(p.out.String(), `"msg":"supervisor is gone, draining"`) {
		t.Error("it did not say why")
	}
}

// gone reports whether pid ended; a zombie that nobody collects yet has.
func gone(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return err != nil || strings.Contains(string(b), ") Z ")
}

func TestWorkerIsFiltered(t *testing.T) {
	dir := t.TempDir()
	c := startController(t, dir)
	p := startZtunnel(t, dir, c.addr)
	p.await("the worker", func() bool {
		code, _ := p.get(p.ready, "/healthz/ready")
		return code != 0
	})
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.worker()))
	must(t, err)
	if len(tasks) == 0 {
		t.Fatal("the worker has no threads")
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		must(t, err)
		if !strings.Contains(string(b), "Seccomp:\t2") || !strings.Contains(string(b), "NoNewPrivs:\t1") {
			t.Errorf("%s has no filter", task)
		}
	}
}

func TestQuitEndsBoth(t *testing.T) {
	dir := t.TempDir()
	c := startController(t, dir)
	p := startZtunnel(t, dir, c.addr)
	p.await("the worker", func() bool {
		code, _ := p.get(p.admin, "/logging")
		return code == 200
	})
	r, err := http.Post("http://"+p.admin+"/quitquitquit", "", nil)
	must(t, err)
	r.Body.Close()
	select {
	case err := <-p.ended:
		if err != nil {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("did not end in 20 s")
	}
}

func TestFlags(t *testing.T) {
	env := map[string]string{"NODE_NAME": "n1", "POD_NAME": "ztunnel-x", "POD_NAMESPACE": "sys", "INSTANCE_IP": "10.1.2.3"}
	o, err := parse([]string{"--xds-addr=c:15012"}, func(k string) string { return env[k] }, io.Discard)
	must(t, err)
	if id := o.nodeID(); id != "ztunnel~10.1.2.3~ztunnel-x.sys~sys.svc.cluster.local" {
		t.Errorf("node id %q", id)
	}
	if o.caAddr != "c:15012" {
		t.Errorf("ca %q", o.caAddr)
	}
	o, err = parse(nil, func(k string) string { return env[k] }, io.Discard)
	must(t, err)
	if o.xdsAddr != "istiod.sys.svc:15012" || o.serverName != "istiod.sys.svc" {
		t.Errorf("controller %q as %q", o.xdsAddr, o.serverName)
	}
	for args, want := range map[string]string{
		"--xds-addr=nope":             "--xds-addr",
		"--xds-addr=:1":               "--xds-addr",
		"--ca-addr=h:99999":           "--ca-addr",
		"--admin-addr=10.0.0.1:15000": "not a loopback",
		"--admin-addr=:15000":         "--admin-addr",
		"--zds=":                      "--zds",
		"--token=/":                   "--token: / is a directory",
		"--drain-timeout=-1s":         "--drain-timeout",
		"--drain-timeout=soon":        "drain-timeout",
		"--cpus=0":                    "--cpus",
		"--log-level=loud":            "log-level",
		"--instance-ip=x":             "--instance-ip",
		"stray":                       `"stray"`,
		"--unknown":                   "unknown",
	} {
		if _, err := parse([]string{args}, func(k string) string { return env[k] }, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
	if _, err := parse(nil, func(string) string { return "" }, io.Discard); err == nil || !strings.Contains(err.Error(), "--node-name") {
		t.Errorf("without a node: %v", err)
	}
}

func TestBadFlagsEndAtOnce(t *testing.T) {
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self, "--node-name=n1", "--cpus=0")
	cmd.Env = append(os.Environ(), mainVar+"=1")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != drain.ExitConfig || !strings.Contains(string(out), "--cpus: 0 is less than 1") {
		t.Errorf("%v: %s", err, out)
	}
}
