package rows

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/undermesh/undermesh/test/e2e"
)

// want judges the answers to one question; what is wrong with them is all that it says.
type want func([]e2e.Answer) error

// every checks each answer; an answer that is no answer is wrong.
func every(f func(e2e.Answer) error) want {
	return func(all []e2e.Answer) error {
		for i, a := range all {
			if a.Error != "" {
				return fmt.Errorf("answer %d: %s", i, a.Error)
			}
			if err := f(a); err != nil {
				return fmt.Errorf("answer %d: %w", i, err)
			}
		}
		return nil
	}
}

// status wants a status code, and the version of who answered: "" for anyone, "-" for no server at all.
func status(code int, version string) want {
	return every(func(a e2e.Answer) error {
		got := a.Headers["x-version"]
		if a.Status != code || version == "-" && got != "" || version != "" && version != "-" && got != version {
			return fmt.Errorf("got %d of %q, want %d of %q: %.200q", a.Status, got, code, version, a.Body)
		}
		return nil
	})
}

// header wants a header of the response; "" for its absence.
func header(name, value string) want {
	return every(func(a e2e.Answer) error {
		if got := a.Headers[name]; got != value {
			return fmt.Errorf("header %s is %q, want %q", name, got, value)
		}
		return nil
	})
}

// body wants texts in the body; after "!" a text that is not there.
func body(texts ...string) want {
	return every(func(a e2e.Answer) error {
		for _, text := range texts {
			text, absent := strings.CutPrefix(text, "!")
			if strings.Contains(a.Body, text) == absent {
				return fmt.Errorf("body has %q: %t, in %.900q", text, !absent, a.Body)
			}
		}
		return nil
	})
}

// took wants each answer to take between two times, in milliseconds.
func took(least, most float64) want {
	return every(func(a e2e.Answer) error {
		if a.MS < least || a.MS > most {
			return fmt.Errorf("took %.0f ms, want %.0f to %.0f", a.MS, least, most)
		}
		return nil
	})
}

// refused wants no answer at all.
func refused(all []e2e.Answer) error {
	for i, a := range all {
		if a.Error == "" {
			return fmt.Errorf("answer %d: %d %.200q", i, a.Status, a.Body)
		}
	}
	return nil
}

func both(all ...want) want {
	return func(answers []e2e.Answer) error {
		for _, f := range all {
			if err := f(answers); err != nil {
				return err
			}
		}
		return nil
	}
}

// versions counts who answered.
func versions(all []e2e.Answer) (map[string]int, error) {
	got := map[string]int{}
	for i, a := range all {
		if a.Error != "" || a.Status != 200 {
			return nil, fmt.Errorf("answer %d: %d %s %.200q", i, a.Status, a.Error, a.Body)
		}
		got[a.Headers["x-version"]]++
	}
	return got, nil
}

// split wants the versions to answer in the given percentages, with a tolerance of four standard deviations; nobody else answers, and
// who has 0 or 100 has that exactly.
func split(percent map[string]int) want {
	return func(all []e2e.Answer) error {
		got, err := versions(all)
		if err != nil {
			return err
		}
		for v := range got {
			if _, ok := percent[v]; !ok {
				return fmt.Errorf("%s answers: %v", v, got)
			}
		}
		for v, share := range percent {
			if !near(got[v], len(all), float64(share)/100) {
				return fmt.Errorf("%s answers %d of %d, want %d %%: %v", v, got[v], len(all), share, got)
			}
		}
		return nil
	}
}

// near tells whether k of n is what a chance of p gives, within four standard deviations and one.
func near(k, n int, p float64) bool {
	if p == 0 || p == 1 {
		return float64(k) == p*float64(n)
	}
	mean := p * float64(n)
	return math.Abs(float64(k)-mean) <= 1+4*math.Sqrt(mean*(1-p))
}

// instances lists the pods that answered, by the echo's own word.
func instances(all []e2e.Answer) ([]string, error) {
	var out []string
	for i, a := range all {
		_, rest, ok := strings.Cut(a.Body, `"instance":"`)
		name, _, _ := strings.Cut(rest, `"`)
		if a.Error != "" || !ok {
			return nil, fmt.Errorf("answer %d: %d %s %.200q", i, a.Status, a.Error, a.Body)
		}
		out = append(out, name)
	}
	return out, nil
}

// inTurn wants n pods to answer in turn: of any n answers that follow each other, each is of another pod.
func inTurn(n int) want {
	return func(all []e2e.Answer) error {
		seen, err := instances(all)
		if err != nil {
			return err
		}
		for i := range len(seen) - n + 1 {
			window := slices.Clone(seen[i : i+n])
			slices.Sort(window)
			if len(slices.Compact(window)) != n {
				return fmt.Errorf("not in turn at %d: %v", i, seen)
			}
		}
		return nil
	}
}

// onePod wants all answers to be of one pod.
func onePod(all []e2e.Answer) error {
	seen, err := instances(all)
	if err != nil {
		return err
	}
	slices.Sort(seen)
	if pods := slices.Compact(seen); len(pods) != 1 {
		return fmt.Errorf("answers are of %v", pods)
	}
	return nil
}

// spread wants answers of at least n pods.
func spread(n int) want {
	return func(all []e2e.Answer) error {
		seen, err := instances(all)
		if err != nil {
			return err
		}
		slices.Sort(seen)
		if pods := slices.Compact(seen); len(pods) < n {
			return fmt.Errorf("answers are of %v", pods)
		}
		return nil
	}
}
