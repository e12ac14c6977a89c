package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrOther is what a check returns when it saw the opposite of what it wants, and not when it could not look.
var ErrOther = errors.New("observed otherwise")

// Pairs asks httpbin in every namespace from sleep in every namespace and returns "from→to" → "status exit".
func (w *World) Pairs(ctx context.Context) (map[string]string, error) {
	got := map[string]string{}
	for _, from := range All {
		line := `for to in ` + strings.Join(All, " ") + `; do code=$(curl -s -o /dev/null -m 10 -w '%{http_code}' http://httpbin.$to:8000/ip); echo $to $code $?; done`
		r, err := w.Exec(ctx, from, "sleep", line)
		if err != nil {
			return nil, err
		}
		for _, l := range strings.Split(strings.TrimSpace(r.Out), "\n") {
			f := strings.Fields(l)
			if len(f) != 3 {
				return nil, fmt.Errorf("pair %s→?: got %q %q", from, l, r.Err)
			}
			got[from+"→"+f[0]] = f[1] + " " + f[2]
		}
	}
	return got, nil
}

// ExpectPairs polls until every pair answers 200 but those that are refused: "000", curl exit code 56, or what follows "=" in the
// pair ("foo→bar=403 0"). Policies and enrolment take effect within the limit.
func (w *World) ExpectPairs(ctx context.Context, limit time.Duration, refused ...string) error {
	var got map[string]string
	err := Until(ctx, limit, "nine pairs", func(ctx context.Context) (err error) {
		if got, err = w.Pairs(ctx); err != nil {
			return err
		}
		return wantPairs(got, refused)
	})
	w.sayPairs(got)
	return err
}

func wantPairs(got map[string]string, refused []string) error {
	if len(got) != len(All)*len(All) {
		return fmt.Errorf("got %d pairs", len(got))
	}
	for pair, result := range got {
		want := "200 0"
		for _, r := range refused {
			if name, answer, given := strings.Cut(r, "="); name == pair && given {
				want = answer
			} else if r == pair {
				want = "000 56"
			}
		}
		if result != want {
			return fmt.Errorf("%w: pair %s: got %q, want %q", ErrOther, pair, result, want)
		}
	}
	return nil
}

func (w *World) sayPairs(got map[string]string) {
	for _, from := range All {
		var row []string
		for _, to := range All {
			row = append(row, fmt.Sprintf("%s: %-7s", to, got[from+"→"+to]))
		}
		w.Say("  from %-7s %s", from, strings.Join(row, "  "))
	}
}
