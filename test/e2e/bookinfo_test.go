package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestJudgePages: a reader who sees something else than they are to see is an error.
func TestJudgePages(t *testing.T) {
	const page = "<title>Simple Bookstore App</title>"
	answer := func(ms float64, texts ...string) Answer {
		return Answer{Status: 200, Body: page + strings.Join(texts, ""), MS: ms}
	}
	none, black := answer(10), answer(20, `<font color="black">`)
	for name, c := range map[string]struct {
		r     reader
		pages []Answer
		ok    bool
	}{
		"as expected":       {reader{user: "jason", sees: exactly(2, BlackStars)}, []Answer{black, black}, true},
		"one too few":       {reader{sees: exactly(2, BlackStars)}, []Answer{black}, false},
		"another one":       {reader{sees: exactly(1, BlackStars)}, []Answer{black, none}, false},
		"in bounds":         {reader{sees: map[string][2]int{NoStars: {1, 2}, BlackStars: {1, 2}}}, []Answer{black, none, none}, true},
		"out of bounds":     {reader{sees: map[string][2]int{NoStars: {2, 2}, BlackStars: {1, 2}}}, []Answer{black, none}, false},
		"too slow":          {reader{sees: exactly(1, NoStars), takes: [2]time.Duration{0, 5 * time.Millisecond}}, []Answer{none}, false},
		"too fast":          {reader{sees: exactly(1, NoStars), takes: [2]time.Duration{time.Second, time.Minute}}, []Answer{none}, false},
		"no page":           {reader{sees: exactly(1, NoStars)}, []Answer{{Status: 200, Body: "hello"}}, false},
		"no answer":         {reader{sees: exactly(1, NoStars)}, []Answer{{Error: "refused"}}, false},
		"no reviews":        {reader{sees: exactly(1, NoReviews)}, []Answer{answer(1, "Sorry, product reviews are currently unavailable for this book.")}, true},
		"no ratings":        {reader{sees: exactly(1, NoRatings)}, []Answer{answer(1, "Ratings service is currently unavailable")}, true},
		"an error's status": {reader{sees: exactly(1, NoStars)}, []Answer{{Status: 503, Body: page}}, false},
	} {
		if line, err := c.r.judge(c.pages); (err == nil) != c.ok {
			t.Errorf("%s: %q, %v", name, line, err)
		}
	}
}
