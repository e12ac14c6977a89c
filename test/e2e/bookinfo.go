package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Shelf is the namespace of Bookinfo.
const Shelf = "bookinfo"

// BookinfoRules reads rules of Bookinfo in the repository at root by the names that the documents use.
func BookinfoRules(root string, names ...string) (string, error) {
	var out []string
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join(root, "deploy/samples/bookinfo/networking", n+".yaml"))
		if err != nil {
			return "", fmt.Errorf("read rules of Bookinfo: %w", err)
		}
		out = append(out, string(b))
	}
	return strings.Join(out, "---\n"), nil
}

// ProductPage asks for Bookinfo's page as a user, "" for nobody.
func ProductPage(user string) Question {
	q := Question{URL: "http://productpage.bookinfo:9080/productpage", Timeout: 12000}
	if user != "" {
		q.Headers = map[string]string{"Cookie": "session=" + base64.RawURLEncoding.EncodeToString([]byte(user))}
	}
	return q
}

// What a page of Bookinfo shows of its reviews. The versions 1, 2 and 3 of reviews show no, black and red stars.
const (
	NoStars, BlackStars, RedStars = "no stars", "black stars", "red stars"
	NoRatings, NoReviews          = "no ratings", "no reviews"
)

// shows is what a page shows; what is no page is shown as it came.
func shows(a *Answer) string {
	switch has := func(text string) bool { return strings.Contains(a.Body, text) }; {
	case a.Error != "" || a.Status != 200 || !has("<title>Simple Bookstore App</title>"):
		return fmt.Sprintf("%d %s", a.Status, a.Error)
	case has("product reviews are currently unavailable"):
		return NoReviews
	case has("Ratings service is currently unavailable"):
		return NoRatings
	case has(`<font color="black">`):
		return BlackStars
	case has(`<font color="red">`):
		return RedStars
	}
	return NoStars
}

// reader is who asks for pages, how often, and what they are to see.
type reader struct {
	user  string
	pages int
	sees  map[string][2]int // at least and at most so many pages
	takes [2]time.Duration  // each page, at least and at most; the second 0: any time
}

func exactly(n int, what string) map[string][2]int { return map[string][2]int{what: {n, n}} }

// bookinfoWalk is the documents' tasks: request routing, traffic shifting, fault injection.
var bookinfoWalk = []struct {
	title, rules string // names of files, separated by blanks
	readers      []reader
}{
	{"without a VirtualService: each version in its turn", "destination-rule-all", []reader{{pages: 12, sees: map[string][2]int{NoStars: {1, 10}, BlackStars: {1, 10}, RedStars: {1, 10}}}}},
	{"virtual-service-all-v1: version 1 alone", "destination-rule-all virtual-service-all-v1", []reader{{pages: 12, sees: exactly(12, NoStars)}}},
	{"virtual-service-reviews-test-v2: version 2 for jason", "virtual-service-reviews-test-v2", []reader{
		{user: "jason", pages: 6, sees: exactly(6, BlackStars)}, {pages: 6, sees: exactly(6, NoStars)}}},
	{"virtual-service-ratings-test-delay: 7 s for jason, of which the page waits 6", "virtual-service-ratings-test-delay", []reader{
		{user: "jason", pages: 1, sees: exactly(1, NoReviews), takes: [2]time.Duration{5500 * time.Millisecond, 7 * time.Second}},
		{pages: 6, sees: exactly(6, NoStars), takes: [2]time.Duration{0, 1500 * time.Millisecond}}}},
	{"virtual-service-ratings-test-abort: an error for jason", "virtual-service-ratings-test-abort", []reader{
		{user: "jason", pages: 6, sees: exactly(6, NoRatings), takes: [2]time.Duration{0, 1500 * time.Millisecond}}, {pages: 6, sees: exactly(6, NoStars)}}},
	// 60 pages at a chance of a half: within four standard deviations.
	{"virtual-service-reviews-50-v3: half to version 3", "virtual-service-reviews-50-v3", []reader{{pages: 60, sees: map[string][2]int{NoStars: {14, 46}, RedStars: {14, 46}}}}},
}

// Bookinfo walks through the documents' tasks with their files, in the mesh. Nothing of it is left.
func (w *World) Bookinfo(ctx context.Context) error {
	if err := w.Deploy(ctx, Shelf, "", "bookinfo/platform/kube/bookinfo", "sleep"); err != nil {
		return err
	}
	if err := w.Enrol(ctx, Shelf); err != nil {
		return err
	}
	for _, s := range bookinfoWalk {
		w.Say("  %s", s.title)
		rules, err := BookinfoRules(w.Root, strings.Fields(s.rules)...)
		if err != nil {
			return err
		}
		if _, err := w.KubectlIn(ctx, []byte(rules), "apply", "-n", Shelf, "-f", "-"); err != nil {
			return err
		}
		var saw []string
		if err := Until(ctx, 30*time.Second, s.title, func(ctx context.Context) (err error) {
			saw, err = w.readers(ctx, s.readers)
			return err
		}); err != nil {
			return err
		}
		for _, line := range saw {
			w.Say("    %s", line)
		}
	}
	_, err := w.Kubectl(ctx, "delete", "namespace", Shelf, "--wait")
	return err
}

// readers says what each of them saw, or what they should have seen.
func (w *World) readers(ctx context.Context, list []reader) ([]string, error) {
	questions := make([]Question, len(list))
	for i, r := range list {
		questions[i] = ProductPage(r.user)
		questions[i].N = r.pages
	}
	answers, err := w.Ask(ctx, Shelf, "sleep", questions...)
	if err != nil {
		return nil, err
	}
	var out []string
	for i, r := range list {
		line, err := r.judge(answers[i])
		if err != nil {
			return nil, err
		}
		out = append(out, line)
	}
	return out, nil
}

func (r *reader) judge(pages []Answer) (string, error) {
	saw := map[string]int{}
	longest, shortest := 0.0, 1e9
	for i := range pages {
		saw[shows(&pages[i])]++
		longest, shortest = max(longest, pages[i].MS), min(shortest, pages[i].MS)
	}
	who := "nobody"
	if r.user != "" {
		who = r.user
	}
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(saw)) {
		parts = append(parts, fmt.Sprintf("%d with %s", saw[what], what))
	}
	line := fmt.Sprintf("as %-7s %2d pages, %s, in %.0f ms at most", who+":", len(pages), strings.Join(parts, ", "), longest)
	for what := range saw {
		if _, ok := r.sees[what]; !ok {
			return "", fmt.Errorf("%s: none should be with %s", line, what)
		}
	}
	for what, n := range r.sees {
		if saw[what] < n[0] || saw[what] > n[1] {
			return "", fmt.Errorf("%s: want %d to %d with %s", line, n[0], n[1], what)
		}
	}
	least, most := float64(r.takes[0].Milliseconds()), float64(r.takes[1].Milliseconds())
	if most > 0 && (shortest < least || longest > most) {
		return "", fmt.Errorf("%s and %.0f at least: want %s to %s", line, shortest, r.takes[0], r.takes[1])
	}
	return line, nil
}
