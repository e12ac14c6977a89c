package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// swarmFile tells the bench where the swarm's control door is.
const swarmFile = "swarm.json"

// swarm is a process that is thin clients and nothing else: what a thousand connections cost on the clients' side must be
// neither in the controller's memory nor in the bench's.
type swarm struct {
	dial func(i int) dialFunc
	seed maphash.Seed
	wg   sync.WaitGroup

	mu     sync.Mutex // protects below; one request at a time
	thins  []*thin
	mark   []marked
	failed chan error
}

// marked is what a client had when the bench said so.
type marked struct{ states, responses int64 }

// Answers of the control door.
type (
	grown struct {
		Took    time.Duration // until the last of the new clients had everything
		Clients int
	}
	arrived struct{ Last int64 }              // when the last client had the whole state, Unix nanoseconds
	counted struct{ States, Responses int64 } // since the mark, the most of all clients
)

// serveSwarm runs until ctx ends: clients of the controller at addr, whose root is in dir.
func serveSwarm(ctx context.Context, addr, dir string) error {
	dial, err := dialer(dir, addr)
	if err != nil {
		return err
	}
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s := &swarm{dial: dial, seed: maphash.MakeSeed(), failed: make(chan error, 1)}
	page := &http.Server{Handler: s.handler(ctx)}
	ended := make(chan error, 1)
	go func() { ended <- page.Serve(control) }()
	raw, err := json.Marshal(doors{Control: "http://" + control.Addr().String()})
	if err == nil {
		err = writeFile(filepath.Join(dir, swarmFile), raw)
	}
	if err == nil {
		<-ctx.Done()
	}
	page.Close()
	<-ended
	s.wg.Wait()
	return err
}

func (s *swarm) handler(ctx context.Context) http.Handler {
	mux := http.NewServeMux()
	answer := func(path string, f func(*http.Request) (any, error)) {
		mux.HandleFunc(path, func(w http.ResponseWriter, req *http.Request) {
			s.mu.Lock()
			defer s.mu.Unlock()
			out, err := f(req)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			_ = json.NewEncoder(w).Encode(out)
		})
	}
	answer("/grow", func(req *http.Request) (any, error) {
		n, err := strconv.Atoi(req.FormValue("n"))
		if err != nil {
			return nil, fmt.Errorf("n: %w", err)
		}
		return s.growLocked(ctx, req.Context(), n)
	})
	answer("/mark", func(*http.Request) (any, error) {
		s.mark = s.mark[:0]
		for _, t := range s.thins {
			s.mark = append(s.mark, marked{t.states.Load(), t.responses.Load()})
		}
		return counted{}, nil
	})
	answer("/arrived", func(req *http.Request) (any, error) {
		generation, err := strconv.ParseUint(req.FormValue("generation"), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("generation: %w", err)
		}
		return s.arrivedLocked(req.Context(), generation)
	})
	answer("/counts", func(*http.Request) (any, error) {
		var out counted
		for i, t := range s.thins {
			out.States = max(out.States, t.states.Load()-s.mark[i].states)
			out.Responses = max(out.Responses, t.responses.Load()-s.mark[i].responses)
		}
		return out, nil
	})
	return mux
}

// growLocked adds clients, all at once, until there are n, and waits until each has everything. All must have been given
// the same, to the byte: nothing changes while they join.
func (s *swarm) growLocked(ctx, request context.Context, n int) (grown, error) {
	begin, old := time.Now(), len(s.thins)
	for len(s.thins) < n {
		i := len(s.thins) + 1
		t := newThin(i, s.seed, s.dial(i))
		s.thins = append(s.thins, t)
		s.wg.Go(func() {
			if err := t.run(ctx); err != nil && ctx.Err() == nil {
				select {
				case s.failed <- fmt.Errorf("client %d: %w", t.id, err):
				default:
				}
			}
		})
	}
	for _, t := range s.thins[old:] {
		select {
		case <-t.synced:
		case err := <-s.failed:
			return grown{}, err
		case <-request.Done():
			return grown{}, errors.New("the bench does not wait any longer")
		case <-ctx.Done():
			return grown{}, ctx.Err()
		}
	}
	took := time.Since(begin)
	for _, t := range s.thins[old:] {
		if first := s.thins[old]; t.digest.Load() != first.digest.Load() || t.resources.Load() != first.resources.Load() {
			return grown{}, fmt.Errorf("clients %d and %d were given different resources: %d and %d of them", first.id, t.id,
				first.resources.Load(), t.resources.Load())
		}
	}
	return grown{took, len(s.thins)}, nil
}

// arrivedLocked waits until every client has the state of the generation, or a later one, as a whole.
func (s *swarm) arrivedLocked(request context.Context, generation uint64) (out arrived, err error) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for i := 0; i < len(s.thins); {
		if t := s.thins[i]; t.generation.Load() >= generation {
			out.Last = max(out.Last, t.last.Load())
			i++
			continue
		}
		select {
		case <-tick.C:
		case err := <-s.failed:
			return out, err
		case <-request.Done():
			return out, fmt.Errorf("client %d has not got generation %d", s.thins[i].id, generation)
		}
	}
	return out, nil
}
