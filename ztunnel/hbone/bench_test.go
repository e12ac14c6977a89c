package hbone

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/net/http2"
)

// A tunnelMaker connects n pairs of applications through one tunnel each way, on one machine in one process:
// app -> relay -> TLS -> relay -> upstream, all over loopback TCP.
type tunnelMaker func(b *testing.B, n int) (apps, ups []*net.TCPConn)

func benchTCP(b *testing.B, n int) (apps, near, far, ups []*net.TCPConn) {
	for range n {
		app, x := tcpPair(b)
		y, up := tcpPair(b)
		apps, near, far, ups = append(apps, app), append(near, x), append(far, y), append(ups, up)
	}
	return
}

func index(s string) int {
	i, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return i
}

func hboneTunnel(b *testing.B, n int) (apps, ups []*net.TCPConn) {
	apps, near, far, ups := benchTCP(b, n)
	x, y := tlsPair(b)
	cl := startPair(b, x, y, testConfig(), testConfig(), func(ctx context.Context, r *ServerRequest) {
		if s, err := r.Accept(nil); err == nil {
			_, _ = Relay(ctx, s, far[index(r.Header.Get("x-i"))])
		}
	})
	for i := range n {
		s, err := cl.Connect(b.Context(), Request{Authority: "10.0.0.7:80", Header: Header{{"x-i", strconv.Itoa(i)}}})
		if err != nil {
			b.Fatal(err)
		}
		go func() { _, _ = Relay(context.Background(), s, near[i]) }()
	}
	return apps, ups
}

func netHTTP2Tunnel(b *testing.B, n int) (apps, ups []*net.TCPConn) {
	apps, near, far, ups := benchTCP(b, n)
	x, y := tlsPair(b)
	go (&http2.Server{MaxReadFrameSize: 1 << 20, MaxUploadBufferPerConnection: 16 << 20, MaxUploadBufferPerStream: 4 << 20}).
		ServeConn(y, &http2.ServeConnOpts{Handler: netRelay(far)})
	cc := netHTTP2Client(b, x)
	for i := range n {
		resp, pw, err := netConnect(cc, "10.0.0.7:80", http.Header{"X-I": {strconv.Itoa(i)}})
		if err != nil {
			b.Fatal(err)
		}
		go func() { _, _ = io.CopyBuffer(pw, struct{ io.Reader }{near[i]}, make([]byte, 64<<10)); pw.Close() }()
		go func() {
			_, _ = io.CopyBuffer(struct{ io.Writer }{near[i]}, resp.Body, make([]byte, 64<<10))
			resp.Body.Close()
		}()
	}
	return apps, ups
}

// tlsTunnel is a TLS connection for each pair.
func tlsTunnel(b *testing.B, n int) (apps, ups []*net.TCPConn) {
	apps, near, far, ups := benchTCP(b, n)
	for i := range n {
		x, y := tlsPair(b)
		for _, c := range [][2]net.Conn{{x, near[i]}, {near[i], x}, {y, far[i]}, {far[i], y}} {
			go func() {
				_, _ = io.CopyBuffer(struct{ io.Writer }{c[0]}, struct{ io.Reader }{c[1]}, make([]byte, 64<<10))
			}()
		}
		b.Cleanup(func() { x.NetConn().Close(); y.NetConn().Close() })
	}
	return apps, ups
}

var benchTunnels = []struct {
	name string
	make tunnelMaker
}{{"hbone", hboneTunnel}, {"xnet", netHTTP2Tunnel}, {"tls", tlsTunnel}}

func BenchmarkRequestResponse(b *testing.B) {
	for _, n := range []int{1, 64} {
		for _, tun := range benchTunnels {
			b.Run(tun.name+"/"+map[int]string{1: "1", 64: "64"}[n], func(b *testing.B) {
				apps, ups := tun.make(b, n)
				for _, u := range ups {
					go func() { _, _ = io.Copy(struct{ io.Writer }{u}, struct{ io.Reader }{u}) }()
				}
				cpu := startCPU(b)
				var wg sync.WaitGroup
				for i, a := range apps {
					rounds := b.N / n
					if i < b.N%n {
						rounds++
					}
					wg.Go(func() { pingPong(b, a, rounds) })
				}
				wg.Wait()
				cpu()
				closeAll(apps, ups)
			})
		}
	}
}

func pingPong(b *testing.B, a net.Conn, rounds int) {
	buf := make([]byte, 128)
	for range rounds {
		if _, err := a.Write(buf); err != nil {
			b.Error(err)
			return
		}
		if _, err := io.ReadFull(a, buf); err != nil {
			b.Error(err)
			return
		}
	}
}

func BenchmarkBulk(b *testing.B) {
	for _, n := range []int{1, 8} {
		for _, tun := range benchTunnels {
			b.Run(tun.name+"/"+map[int]string{1: "1", 8: "8"}[n], func(b *testing.B) {
				apps, ups := tun.make(b, n)
				const piece = 1 << 20
				b.SetBytes(piece)
				cpu := startCPU(b)
				var wg sync.WaitGroup
				for i := range apps {
					rounds := b.N / n
					if i < b.N%n {
						rounds++
					}
					wg.Go(func() {
						buf := make([]byte, piece)
						for range rounds {
							_, _ = apps[i].Write(buf)
						}
					})
					wg.Go(func() {
						buf := make([]byte, piece)
						for range rounds {
							if _, err := io.ReadFull(ups[i], buf); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				cpu()
				closeAll(apps, ups)
			})
		}
	}
}

// startCPU begins to measure; the returned func stops and reports the process's CPU time an operation, which a busy
// machine disturbs less than the elapsed time.
func startCPU(b *testing.B) (stop func()) {
	start := cpuTime(b)
	b.ResetTimer()
	return func() {
		b.StopTimer()
		b.ReportMetric(float64(cpuTime(b)-start)/float64(b.N), "cpu-ns/op")
	}
}

func cpuTime(b *testing.B) int64 {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		b.Fatal(err)
	}
	return ru.Utime.Nano() + ru.Stime.Nano()
}

func closeAll(l ...[]*net.TCPConn) {
	for _, cs := range l {
		for _, c := range cs {
			c.Close()
		}
	}
}

// BenchmarkConnect opens and closes streams on one tunnel.
func BenchmarkConnect(b *testing.B) {
	x, y := tlsPair(b)
	cl := startPair(b, x, y, testConfig(), testConfig(), echoHandler)
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			s, err := cl.Connect(context.Background(), Request{Authority: "10.0.0.7:80"})
			if err != nil {
				b.Error(err)
				return
			}
			_ = s.CloseWrite()
			_, _ = io.Copy(io.Discard, s)
			_ = s.Close()
		}
	})
}
