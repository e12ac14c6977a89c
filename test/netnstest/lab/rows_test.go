package lab

import (
	"sync"
	"testing"

	"github.com/undermesh/undermesh/test/rows"
)

// prepared is a lab with the fixture of the rows.
func prepared(t *testing.T) *kube {
	t.Helper()
	k := newKube(t)
	if err := rows.Prepare(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	return k
}

// TestRows observes the tables of rows in one lab, those about hosts outside the mesh apart.
func TestRows(t *testing.T) {
	k := prepared(t)
	var all sync.WaitGroup // not t.Parallel: waiting is no work, and the groups may be more than the processors
	type family struct {
		name string
		rows func(*testing.T, rows.World)
	}
	// Those of the first groups wait for most of their time, and change nothing that the others look at.
	for group, families := range map[string][]family{
		"patience": {{"timeouts", rows.PatienceRows}},
		"walks":    {{"bookinfo", rows.Bookinfo}, {"mirroring", rows.Mirroring}, {"locality", rows.Locality}, {"weights", rows.LB04Weights}},
		"short": {
			{"protocols", rows.ProtocolRows}, {"matches", rows.MatchRows}, {"seeds", rows.SeedRoutes}, {"routes", rows.RouteRows}, {"filters", rows.FilterRows}, {"hosts", rows.HostRows},
			{"lookup", rows.SR17LookupPath}, {"mirrors", rows.MirrorRows}, {"balance", rows.BalanceRows}, {"subsets", rows.LB05SubsetPolicy},
			{"exclusive", rows.LB11Exclusive}, {"timeouts", rows.TimeoutRows}, {"retries", rows.RetryRows}, {"faults", rows.FaultRows}, {"pools", rows.PoolRows}, {"overflow", rows.OverflowRows},
			{"outliers", rows.OutlierRows}, {"tcp", rows.TCPRows}, {"tls", rows.TLSRows}, {"certificates", rows.MT01Certificates},
			{"client", rows.MT13ClientTLS}, {"names", rows.MT29NoNames}, {"traces", rows.TraceRows},
		},
	} {
		all.Go(func() {
			t.Run(group, func(t *testing.T) {
				for _, f := range families {
					t.Run(f.name, func(t *testing.T) { f.rows(t, k) })
				}
			})
		})
	}
	all.Wait()
}

// TestEgressRows has a lab of its own: what is in no registry is blocked in the whole mesh, for a while.
func TestEgressRows(t *testing.T) {
	k := prepared(t)
	rows.Egress(t, k)
	rows.EG23NoTLS(t, k)
}
