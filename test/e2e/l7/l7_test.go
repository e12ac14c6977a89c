package l7

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/e2e"
	"github.com/undermesh/undermesh/test/rows"
)

var _ rows.World = (*e2e.World)(nil)

var prepare = sync.OnceValue(func() error {
	w, err := e2e.Find(func(string, ...any) {})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := w.Fixture(ctx); err != nil {
		return err
	}
	return rows.Prepare(ctx, w)
})

// meshed gives a world with the fixture.
func meshed(t *testing.T) *e2e.World {
	t.Helper()
	if os.Getenv("MESH_TEST_CLUSTER") != "1" {
		t.Skip("needs a cluster with the mesh: make test-cluster")
	}
	if err := prepare(); err != nil {
		t.Fatal(err)
	}
	w, err := e2e.Find(func(format string, args ...any) { t.Logf(format, args...) })
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestMatchRows(t *testing.T)        { rows.MatchRows(t, meshed(t)) }
func TestSeedRoutes(t *testing.T)       { rows.SeedRoutes(t, meshed(t)) }
func TestRouteRows(t *testing.T)        { rows.RouteRows(t, meshed(t)) }
func TestFilterRows(t *testing.T)       { rows.FilterRows(t, meshed(t)) }
func TestHostRows(t *testing.T)         { rows.HostRows(t, meshed(t)) }
func TestSR17LookupPath(t *testing.T)   { rows.SR17LookupPath(t, meshed(t)) }
func TestProtocolRows(t *testing.T)     { rows.ProtocolRows(t, meshed(t)) }
func TestPatienceRows(t *testing.T)     { rows.PatienceRows(t, meshed(t)) }
func TestTimeoutRows(t *testing.T)      { rows.TimeoutRows(t, meshed(t)) }
func TestRetryRows(t *testing.T)        { rows.RetryRows(t, meshed(t)) }
func TestFaultRows(t *testing.T)        { rows.FaultRows(t, meshed(t)) }
func TestPoolRows(t *testing.T)         { rows.PoolRows(t, meshed(t)) }
func TestOutlierRows(t *testing.T)      { rows.OutlierRows(t, meshed(t)) }
func TestBalanceRows(t *testing.T)      { rows.BalanceRows(t, meshed(t)) }
func TestLB04Weights(t *testing.T)      { rows.LB04Weights(t, meshed(t)) }
func TestLB05SubsetPolicy(t *testing.T) { rows.LB05SubsetPolicy(t, meshed(t)) }
func TestLB11Exclusive(t *testing.T)    { rows.LB11Exclusive(t, meshed(t)) }
func TestLocality(t *testing.T)         { rows.Locality(t, meshed(t)) }
func TestEgress(t *testing.T)           { rows.Egress(t, meshed(t)) }
func TestEG23NoTLS(t *testing.T)        { rows.EG23NoTLS(t, meshed(t)) }
func TestMT01Certificates(t *testing.T) { rows.MT01Certificates(t, meshed(t)) }
func TestMT13ClientTLS(t *testing.T)    { rows.MT13ClientTLS(t, meshed(t)) }
func TestTraceRows(t *testing.T)        { rows.TraceRows(t, meshed(t)) }
func TestMT29NoNames(t *testing.T)      { rows.MT29NoNames(t, meshed(t)) }
func TestTCPRows(t *testing.T)          { rows.TCPRows(t, meshed(t)) }
func TestTLSRows(t *testing.T)          { rows.TLSRows(t, meshed(t)) }
func TestBookinfo(t *testing.T)         { rows.Bookinfo(t, meshed(t)) }
func TestMirroring(t *testing.T)        { rows.Mirroring(t, meshed(t)) }
func TestMirrorRows(t *testing.T)       { rows.MirrorRows(t, meshed(t)) }
func TestCircuitBreaking(t *testing.T)  { rows.CircuitBreaking(t, meshed(t)) }
func TestSI14Views(t *testing.T)        { rows.SI14Views(t, meshed(t)) }
func TestInstalledMode(t *testing.T)    { rows.InstalledMode(t, meshed(t)) }
