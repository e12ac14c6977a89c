package nodes

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/netnstest/lab"
)

// A victim asks at a low rate while its neighbour of the same node asks as often as it is answered. Nothing is pinned: what the
// victim feels of its neighbour is the question, and without a mesh it feels the machine's CPUs too.
var (
	victim = work{"victim", "h1", "/1024", 4, 1, 400}
	hot    = work{"hot", "h1", "/1024", 64, 1, 0}
)

const besideLimit = 1.2 // of the victim's p99 without a mesh

// beside is what a victim got beside its neighbour in one round.
type beside struct {
	side     string
	quiet    answers // without a neighbour
	got, hot answers
	missing  string
}

// neighbours measures on both sides in turn.
func neighbours(tb testing.TB, tool string, rounds int, length time.Duration) []beside {
	tb.Helper()
	w := &world{tb: tb, tool: tool}
	bare, mesh := lab.New(tb, lab.Config{Bare: true}), lab.New(tb, lab.Config{})
	sides := map[string][2]*side{noMesh: w.pair(bare, noMesh), ours: w.pair(mesh, ours)}
	var all []beside
	for range rounds {
		for _, i := range rand.Perm(2) {
			name := []string{noMesh, ours}[i]
			b := beside{side: name}
			if err := w.beside(&b, sides[name], length); err != nil {
				b.missing = err.Error()
			}
			fmt.Printf("neighbour %-8s p99 alone %v, beside %v; the neighbour's p99 %v, %d requests %s\n", name, b.quiet.P99, b.got.P99, b.hot.P99, b.hot.Requests, b.missing)
			all = append(all, b)
		}
	}
	return all
}

// pair are a victim and a hot client, each with a server of its own, all on the first node.
func (w *world) pair(l *lab.Lab, name string) [2]*side {
	w.tb.Helper()
	l.Namespace(namespace, name == ours)
	var out [2]*side
	for i, who := range []string{"victim", "hot"} {
		client, server := l.Nodes[0].Pod(namespace, who), l.Nodes[0].Pod(namespace, "web-"+who)
		w.serve(server)
		out[i] = &side{name: name, place: who, client: client, h1: addr(server, h1Port)}
		if name != ours {
			continue
		}
		ip := virtualIP + strconv.Itoa(i+1)
		l.Apply("svc-"+who, service("web-"+who, ip))
		l.Apply("vs-"+who, virtualService("web-"+who, routes, 0))
		out[i].h1, out[i].nodes = ip+":80", []*lab.Process{l.Nodes[0].Ztunnel}
		client.Enrolled(true)
		server.Enrolled(true)
	}
	return out
}

// beside measures the victim alone and then beside its neighbour, which begins before and ends after it.
func (w *world) beside(b *beside, s [2]*side, length time.Duration) (err error) {
	for _, p := range s[0].nodes {
		if err := p.Forget(); err != nil {
			return err
		}
	}
	if b.quiet, err = w.ask(victim, s[0], length); err != nil {
		return fmt.Errorf("ask alone: %w", err)
	}
	const margin = 300 * time.Millisecond
	var wg sync.WaitGroup
	var hotErr error
	wg.Go(func() { b.hot, hotErr = w.ask(hot, s[1], length+2*margin) })
	ctx, stop := context.WithTimeout(context.Background(), margin)
	<-ctx.Done()
	stop()
	b.got, err = w.ask(victim, s[0], length)
	wg.Wait()
	if err == nil {
		err = hotErr
	}
	if err == nil && b.got.Errors+b.hot.Errors+b.quiet.Errors > 0 {
		err = fmt.Errorf("errors: %s%s%s", b.quiet.First, b.got.First, b.hot.First)
	}
	return err
}

// besideTable is the section of the neighbours.
func besideTable(all []beside) string {
	var b strings.Builder
	b.WriteString("| side | victim's p99 alone, us | beside its neighbour | the neighbour's requests a second | its p99, us | rounds |\n|---|---|---|---|---|---|\n")
	p99s := map[string]float64{}
	for _, name := range []string{noMesh, ours} {
		var quiet, got, rate, hot []float64
		for _, r := range all {
			if r.side == name && r.missing == "" {
				quiet, got = append(quiet, micros(r.quiet.P99)), append(got, micros(r.got.P99))
				rate, hot = append(rate, float64(r.hot.Requests)/r.hot.Elapsed.Seconds()), append(hot, micros(r.hot.P99))
			}
		}
		if len(got) == 0 {
			fmt.Fprintf(&b, "| %s | missing | | | | 0 |\n", name)
			continue
		}
		p99s[name] = middle(got)
		fmt.Fprintf(&b, "| %s | %.0f | %.0f [%.0f-%.0f] | %.0f | %.0f | %d |\n", name, middle(quiet), middle(got), slices.Min(got), slices.Max(got), middle(rate), middle(hot), len(got))
	}
	if p99s[noMesh] > 0 && p99s[ours] > 0 {
		share := p99s[ours] / p99s[noMesh]
		fmt.Fprintf(&b, "\nThe victim's p99 beside its neighbour is %.2f of that without a mesh (aim: at most %.2f): %s. It asks %.0f times a second, its neighbour on %d connections as often as it is answered.\n",
			share, besideLimit, map[bool]string{true: "met", false: "missed"}[share <= besideLimit], victim.rate, hot.conns)
	}
	return b.String()
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// middle is the median of a list that is not empty.
func middle(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	return s[len(s)/2]
}
