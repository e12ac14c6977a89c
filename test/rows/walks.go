package rows

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/test/e2e"
)

const shelf = e2e.Shelf

// networking reads rules of Bookinfo by the names that the documents use.
func networking(t *testing.T, names ...string) string {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	text, err := e2e.BookinfoRules(filepath.Join(filepath.Dir(file), "../.."), names...)
	check(t, err)
	return text
}

// page asks for the product page as a user, "" for nobody.
func page(user string, w want) expect {
	return expect{e2e.ProductPage(user), both(status(200, ""), body("<title>Simple Bookstore App</title>"), w)}
}

// What the page shows of reviews.
var (
	noStars   = both(body("Book Reviews", "!glyphicon-star"), fast)
	black     = body(`<font color="black">`)
	red       = body(`<font color="red">`)
	noReviews = body("Error fetching product reviews!", "Sorry, product reviews are currently unavailable for this book.")
	noRatings = body("Ratings service is currently unavailable")
	fast      = took(0, 1500)
)

// starShare wants a percentage of pages with stars of a colour, and none on the others.
func starShare(color string, percent int) want {
	return func(all []e2e.Answer) error {
		n := 0
		for _, a := range all {
			stars := strings.Contains(a.Body, "glyphicon-star")
			if stars != strings.Contains(a.Body, `<font color="`+color+`">`) || a.Status != 200 {
				return fmt.Errorf("%d %s %.300q", a.Status, a.Error, a.Body)
			}
			if stars {
				n++
			}
		}
		if !near(n, len(all), float64(percent)/100) {
			return fmt.Errorf("%d of %d have %s stars, want %d %%", n, len(all), color, percent)
		}
		return nil
	}
}

// Bookinfo walks through the documents' tasks with their files: request routing, traffic shifting, fault injection, timeouts. The
// page calls its parts, so outside the mesh is where Bookinfo itself is not enrolled.
func Bookinfo(t *testing.T, w World) {
	ctx := within(t)
	check(t, w.Deploy(ctx, shelf, "", "bookinfo/platform/kube/bookinfo", "sleep"))
	t.Cleanup(func() { check(t, w.DeleteNamespace(context.Background(), shelf)) })
	check(t, w.Enrol(ctx, shelf))
	subsets := networking(t, "destination-rule-all") + "---\n"
	all := func(names ...string) string {
		return subsets + networking(t, append([]string{"virtual-service-all-v1"}, names...)...)
	}
	half := page("", starShare("red", 50))
	half.N, half.C = 60, 4
	ratings := subsets + seed(t, "106") + "---\n" + seed(t, "107")
	rows := []row{
		{ids: "TR-10", title: "everything of version 1: no stars", resource: all(), look: asks(page("", noStars).many(12))},
		{ids: "TR-22 TR-02", title: "black stars for jason only", resource: all("virtual-service-reviews-test-v2"),
			look: asks(page("jason", black).many(6), page("", noStars).many(6), page("john", noStars).many(6))},
		{ids: "TR-02", title: "black stars for jason, red ones for others", resource: subsets + seed(t, "046"),
			look: asks(page("jason", black).many(6), page("", red).many(6))},
		{ids: "TR-11", title: "red stars about half of the time", resource: all("virtual-service-reviews-50-v3"), look: asks(half)},
		{ids: "RS-14 RS-17", title: "a delay of 7 s for jason: the page gives up after 6", resource: all("virtual-service-reviews-test-v2", "virtual-service-ratings-test-delay"),
			look: asks(page("jason", both(noReviews, took(5500, 7000))), page("john", noStars))},
		{ids: "RS-16 RS-17", title: "an error for jason: no ratings, at once", resource: all("virtual-service-reviews-test-v2", "virtual-service-ratings-test-abort"),
			look: asks(page("jason", both(noRatings, fast)).many(3), page("john", noStars).many(3))},
		{ids: "RS-15", title: "a delay of 2 s by the deprecated field: the page works", resource: ratings, look: asks(page("", both(black, took(1900, 3500))))},
		{ids: "RS-20 RS-01", title: "a timeout of 0.5 s on top: no reviews after 1 s", resource: ratings + "---\n" + seed(t, "108"), look: asks(page("", both(noReviews, took(950, 1900))))},
	}
	p := place{w, shelf, "sleep"}
	for i := range rows {
		r := &rows[i]
		t.Run(r.ids+" control: without the resource", func(t *testing.T) { check(t, r.expects(ctx, p, false)) })
		remove := with(ctx, t, w, shelf, r.resource)
		t.Run(r.ids+" "+r.title, func(t *testing.T) { check(t, r.expects(ctx, p, true)) })
		remove()
	}
	check(t, w.Unenrol(ctx, shelf))
	for i := range rows {
		r := &rows[i]
		remove := with(ctx, t, w, shelf, r.resource)
		t.Run(r.ids+" control: outside the mesh", func(t *testing.T) { check(t, r.expects(ctx, p, false)) })
		remove()
	}
}

// Mirroring is the documents' task: version 1 answers, version 2 gets a copy; both write a line.
func Mirroring(t *testing.T, w World) {
	ctx := within(t)
	const namespace = "mirrored"
	var text []string
	for _, n := range []string{"111", "112", "113"} {
		text = append(text, seed(t, n))
	}
	check(t, w.ApplyIn(ctx, "", "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+namespace+"}\n"))
	t.Cleanup(func() { check(t, w.DeleteNamespace(context.Background(), namespace)) })
	check(t, w.ApplyIn(ctx, namespace, strings.Join(text, "---\n")))
	check(t, w.Deploy(ctx, namespace, "", "sleep"))
	check(t, w.Enrol(ctx, namespace))
	subsets := seed(t, "115")
	defer with(ctx, t, w, namespace, subsets)()
	n := 0
	// A copy is sent after its request: its line may come later.
	copied := func(ctx context.Context, p place) error {
		n++
		path := fmt.Sprintf("/headers?n=%d", n)
		if err := asks(expect{e2e.Question{URL: "http://httpbin.mirrored:8000" + path, N: 5}, status(200, "")})(ctx, p); err != nil {
			return err
		}
		line := regexp.MustCompile(`"GET ` + regexp.QuoteMeta(path) + ` HTTP/1\.1" 200 (\d+) `)
		return soon(ctx, p, "the lines", func(ctx context.Context) error {
			var sizes [2][]string
			for i, version := range []string{"v1", "v2"} {
				out, err := w.Log(ctx, namespace, "app=httpbin,version="+version)
				if err != nil {
					return err
				}
				for _, m := range line.FindAllStringSubmatch(out, -1) {
					sizes[i] = append(sizes[i], m[1])
				}
			}
			if len(sizes[0]) != 5 || len(sizes[1]) != 5 || len(sizes[0][0]) == 0 || sizes[0][0] >= sizes[1][0] {
				return fmt.Errorf("version 1 wrote %v, version 2 %v", sizes[0], sizes[1])
			}
			return nil
		})
	}
	observeAll(t, w, []row{{ids: "TR-24", title: "each request is copied to version 2", namespace: namespace, resource: seed(t, "116"), look: copied, changed: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: nothing}\n"}})
}

// MirrorRows: the copies of echo servers, whose lines say by which host they were asked.
func MirrorRows(t *testing.T, w World) {
	n := 0
	seen := func(ask func(path string) expect, least, most int) func(context.Context, place) error {
		return func(ctx context.Context, p place) error {
			n++
			path := fmt.Sprintf("/mirror-%d", n)
			if err := asks(ask(path))(ctx, p); err != nil {
				return err
			}
			return soon(ctx, p, "the copies", func(ctx context.Context) error {
				out, err := w.Log(ctx, inside, "app=echo,version=v2")
				if err != nil {
					return err
				}
				copies := 0
				for l := range strings.Lines(out) {
					if strings.Contains(l, `"path":"`+path) && strings.Contains(l, `"host":"recommendation.tutorial-shadow:8080"`) {
						copies++
					}
				}
				if copies < least || copies > most {
					return fmt.Errorf("%d copies, want %d to %d", copies, least, most)
				}
				return nil
			})
		}
	}
	mirror := func(text string) string {
		return routes("  - " + to("v1") + "\n    mirror: {host: recommendation, subset: version-v2}\n" + text)
	}
	ask := func(path string) expect { return get(path, v("v1")).many(100) }
	observeAll(t, w, []row{
		{ids: "TR-24", title: "a share of the requests", resource: mirror("    mirrorPercentage: {value: 30}\n"), look: seen(ask, 12, 48), changed: mirror("    mirrorPercentage: {value: 100}\n")},
		{ids: "TR-24", title: "all when no share is named", resource: seed(t, "019") + "---\n" + seed(t, "026"), look: seen(ask, 100, 100)},
		{ids: "TR-25", title: "a copy that is slow or fails disturbs nobody", resource: mirror(""), look: func(ctx context.Context, p place) error {
			return seen(func(path string) expect {
				e := get(path+"?only=v2&delay=5s&status=503", both(v("v1"), took(0, 1000))).many(10)
				e.C, e.Timeout = 10, 2000
				return e
			}, 10, 10)(ctx, p)
		}},
	})
}
