package load

import (
	"context"
	"net"
	"testing"
	"time"
)

// server serves on loopback until the test's end.
func server(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, handle) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// behindTLS is the address of a pair of proxies before addr.
func behindTLS(t *testing.T, addr string) string {
	t.Helper()
	dir := t.TempDir()
	if err := WriteCertificate(dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	cfg, err := TLSConfig(dir)
	if err != nil {
		t.Fatal(err)
	}
	return server(t, TLSOut(t.Context(), cfg, server(t, TLSIn(t.Context(), cfg, addr))))
}

// TestClients shows that each client counts what the server confirmed, plain and behind the TLS proxies.
func TestClients(t *testing.T) {
	echo, sink := server(t, Echo), server(t, Sink)
	for name, way := range map[string]func(*testing.T, string) string{
		"plain": func(_ *testing.T, addr string) string { return addr }, "tls": behindTLS,
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Conns: 2, For: 20 * time.Millisecond}
			cfg.Addr = way(t, sink)
			r, err := Bulk(t.Context(), cfg)
			if err != nil || r.Errors > 0 || r.Bytes == 0 || r.Bytes%bulkBuffer != 0 {
				t.Errorf("bulk: %+v, %v", r, err)
			}
			cfg.Addr = way(t, echo)
			for what, client := range map[string]func(context.Context, Config) (Result, error){"rr": RoundTrips, "connect": Connects} {
				r, err := client(t.Context(), cfg)
				if err != nil || r.Errors > 0 || r.Ops == 0 || r.P50US <= 0 || r.P99US < r.P50US {
					t.Errorf("%s: %+v, %v", what, r, err)
				}
			}
		})
	}
}

// TestClientsReportFailure shows that a server that hangs up is not counted as an answer.
func TestClientsReportFailure(t *testing.T) {
	cfg := Config{Addr: server(t, func(net.Conn) {}), Conns: 1, For: 20 * time.Millisecond}
	for what, client := range map[string]func(context.Context, Config) (Result, error){"rr": RoundTrips, "connect": Connects, "bulk": Bulk} {
		if r, err := client(t.Context(), cfg); err != nil || r.Errors == 0 || r.FirstError == "" || r.Ops+r.Bytes > 0 {
			t.Errorf("%s: %+v, %v", what, r, err)
		}
	}
	cfg.Addr = "127.0.0.1:1"
	if _, err := Bulk(t.Context(), cfg); err == nil {
		t.Error("nobody listens, but bulk reports no error")
	}
}

// TestTLSRefusesStrangers shows that the comparison is with verified certificates.
func TestTLSRefusesStrangers(t *testing.T) {
	dirs := [2]string{t.TempDir(), t.TempDir()}
	var out string
	addr := server(t, Echo)
	for i, dir := range dirs {
		if err := WriteCertificate(dir, time.Now()); err != nil {
			t.Fatal(err)
		}
		cfg, err := TLSConfig(dir)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			addr = server(t, TLSIn(t.Context(), cfg, addr))
		} else {
			out = server(t, TLSOut(t.Context(), cfg, addr))
		}
	}
	if r, err := RoundTrips(t.Context(), Config{Addr: out, Conns: 1, For: 20 * time.Millisecond}); err != nil || r.Ops > 0 || r.Errors != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestQuantile(t *testing.T) {
	if got := quantileUS(nil, 0.5); got != 0 {
		t.Errorf("of none: %v", got)
	}
	times := make([]time.Duration, 100)
	for i := range times {
		times[i] = time.Duration(i+1) * time.Microsecond
	}
	if p50, p99 := quantileUS(times, 0.5), quantileUS(times, 0.99); p50 != 51 || p99 != 100 {
		t.Errorf("p50 %v, p99 %v", p50, p99)
	}
}
