package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	_ "golang.org/x/crypto/x509roots/fallback" // roots where the system has none, as in our image
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	api "github.com/undermesh/undermesh/controller/api/credential"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/nodeagent/zds"
	"github.com/undermesh/undermesh/ztunnel/admin"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/credential"
	"github.com/undermesh/undermesh/ztunnel/drain"
	"github.com/undermesh/undermesh/ztunnel/identity"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

// runWorker is the process that carries connections. It returns when it was told to end and has drained.
func runWorker(o options, stdout io.Writer) error {
	runtime.GOMAXPROCS(o.cpus)
	signal.Ignore(syscall.SIGHUP)
	// Before anything of the network is read.
	if err := drain.RefuseBPF(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	level := new(slog.LevelVar)
	level.Set(o.level)
	stdout = &lineWriter{w: stdout}
	log := slog.New(slog.NewJSONHandler(stdout, &slog.HandlerOptions{Level: level}))
	go func() {
		<-drain.Lifeline(os.NewFile(drain.LifelineFD, "lifeline"))
		log.Error("supervisor is gone, draining")
		end(errors.New("the supervisor is gone"))
	}()
	return run(ctx, o, outputs{log, stdout, level}, func() { end(errors.New("told to quit")) })
}

// outputs are where the worker writes: its log, and the access log beside it, both from one level on.
type outputs struct {
	log    *slog.Logger
	access io.Writer
	level  *slog.LevelVar
}

// lineWriter keeps lines whole that both write to one output.
type lineWriter struct {
	mu sync.Mutex // protects below
	w  io.Writer
}

func (l *lineWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// worker holds the parts that the wiring connects.
type worker struct {
	o        options
	log      *slog.Logger
	out      outputs
	clock    clock.Clock
	registry *prometheus.Registry
	limits   limits
	roots    *identity.Roots
	mesh     *client.Client
	ids      *identity.Manager
	stats    *telemetry.Registry
	names    *names
	secrets  *credential.Manager
	pods     *pods
	admin    *admin.Admin
}

// run wires the parts and runs them until ctx ends and the connections drained.
func run(ctx context.Context, o options, out outputs, quit func()) error {
	log := out.log
	w := &worker{o: o, log: log, out: out, clock: clock.System(), registry: prometheus.NewRegistry()}
	var err error
	if w.limits, err = raiseFiles(); err != nil {
		return err
	}
	log.Info("limits", "files", w.limits.files, "connections", w.limits.conns, "connections_per_pod", w.limits.podConns)
	w.roots = identity.NewRoots(func() ([]byte, error) { return os.ReadFile(o.rootPath) })
	ca, err := w.controlPlane(o.caAddr).Connect()
	if err != nil {
		return err
	}
	defer ca.Close()
	control, err := w.controlPlane(o.xdsAddr).Connect() // for credentials; it dials when one is needed
	if err != nil {
		return err
	}
	defer control.Close()
	if err := w.wire(ca, control); err != nil {
		return err
	}
	w.admin, err = admin.New(admin.Config{
		Sections: w.sections(), Checks: w.checks(), Gatherer: w.registry, Level: out.level, Quit: quit, Pod: w.pods.podNamed,
		Log: log.With("component", "admin"),
	})
	if err != nil {
		return err
	}
	g := &drain.Group{Clock: w.clock, Log: log, Timeout: o.drainTimeout + endSlack}
	for _, e := range []struct {
		name, addr string
		handler    http.Handler
		timeout    time.Duration // 0: profiles and dumps take their time, and only this machine asks for them
	}{
		{"admin", o.adminAddr, w.admin.Handler(), 0},
		{"stats", o.statsAddr, w.admin.StatsHandler(), admin.AnswerTimeout},
		{"ready", o.readyAddr, w.admin.ReadyHandler(), admin.AnswerTimeout},
	} {
		l, err := net.Listen("tcp", e.addr)
		if err != nil {
			return fmt.Errorf("listen for %s: %w", e.name, err)
		}
		defer l.Close()
		g.Support(e.name, func(ctx context.Context) error { return admin.Serve(ctx, l, e.handler, e.timeout, log) })
	}
	g.Support("xds", w.mesh.Run)
	g.Support("identity", w.ids.Run)
	g.Support("telemetry", w.stats.Run)
	g.Support("names", w.names.run)
	g.Support("credentials", w.secrets.Run)
	w.pods.add(g)
	log.Info("ztunnel started", "node", o.nodeName, "xds", o.xdsAddr, "zds", o.zdsPath, "pid", os.Getpid())
	err = g.Run(ctx)
	log.Info("ztunnel ended", "err", err)
	return err
}

// wire makes the parts; nothing runs yet.
func (w *worker) wire(ca, control grpc.ClientConnInterface) error {
	o := w.o
	w.mesh = client.New(client.Config{
		Dial:   func(context.Context) (*grpc.ClientConn, error) { return w.controlPlane(o.xdsAddr).Connect() },
		NodeID: o.nodeID(), NodeName: o.nodeName, ClusterID: o.clusterID, IPs: []string{o.instanceIP},
		Log: w.log.With("component", "xds"), Clock: w.clock, Rand: systemRand{}, Registerer: w.registry,
	})
	var err error
	w.ids, err = identity.New(identity.Config{
		Issuer: identity.NewCAClient(ca), Roots: w.roots, Trust: w.trust, TTL: w.ttl, Clock: w.clock,
		Log: w.log.With("component", "identity"), Metrics: w.registry,
	})
	if err != nil {
		return err
	}
	w.stats = telemetry.New(telemetry.Config{Clock: w.clock, Out: w.out.access, Level: w.out.level, Access: w.access})
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "istio_build", Help: "Build of this component.", ConstLabels: prometheus.Labels{"component": "ztunnel", "tag": version()},
	}, func() float64 { return 1 })
	for _, c := range []prometheus.Collector{
		w.stats, build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := w.registry.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	if w.names, err = newNames(w); err != nil {
		return err
	}
	w.secrets, err = credential.New(credential.Config{Clock: w.clock, Log: w.log.With("component", "credential"),
		Open: func(ctx context.Context) (api.ClientStream, error) { return api.Watch(ctx, control) }})
	if err != nil {
		return err
	}
	w.pods, err = newPods(w)
	return err
}

// controlPlane is how the controller, or the CA, at addr is reached.
func (w *worker) controlPlane(addr string) identity.ControlPlane {
	dialer := &net.Dialer{
		Timeout:         5 * time.Second,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
		Control:         giveUpOnDeadPeer,
	}
	return identity.ControlPlane{
		Addr: addr, ServerName: w.o.serverName, Roots: w.roots, ClusterID: w.o.clusterID, Clock: w.clock,
		Token: func() (string, error) {
			b, err := os.ReadFile(w.o.tokenPath)
			return string(b), err
		},
		Dial: func(ctx context.Context, addr string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", addr) },
	}
}

// giveUpOnDeadPeer ends a connection whose data nobody acknowledges for 20 s: keepalive looks at idle ones only.
func giveUpOnDeadPeer(_, _ string, c syscall.RawConn) error {
	var errno error
	err := c.Control(func(fd uintptr) {
		errno = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 20_000)
	})
	return errors.Join(err, errno)
}

// trust is who may connect, by the newest snapshot; nobody before there is one.
func (w *worker) trust() identity.Trust {
	s := w.mesh.Snapshot()
	if s == nil {
		return identity.Trust{}
	}
	return identity.Trust{Domain: s.Mesh().GetTrustDomain(), Aliases: s.Mesh().GetTrustDomainAliases()}
}

// access is what the mesh says of the access log; everything before the first snapshot.
func (w *worker) access() telemetry.Access {
	s := w.mesh.Snapshot()
	if s == nil {
		return telemetry.Access{}
	}
	return accessOf(s.Mesh().GetAccessLog())
}

// accessOf takes a controller that says nothing, as Istio's does, for one that wants everything.
func accessOf(a *settings.AccessLog) telemetry.Access {
	if a == nil {
		return telemetry.Access{}
	}
	return telemetry.Access{Quiet: a.GetFile() == "", Text: a.GetEncoding() == settings.AccessLog_ENCODING_TEXT}
}

// ttl is the lifetime to ask for; 0 means the default.
func (w *worker) ttl() time.Duration {
	if s := w.mesh.Snapshot(); s != nil {
		return s.Mesh().GetWorkloadCertTtl().AsDuration()
	}
	return 0
}

var _ zds.Handler = (*pods)(nil)

type systemRand struct{}

func (systemRand) Float64() float64 { return rand.Float64() }
