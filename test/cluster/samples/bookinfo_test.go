package main

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// aim is a backend at a test server.
func aim(s *httptest.Server, name string, timeout time.Duration) *backend {
	return &backend{s.URL + "/" + name, &http.Client{Timeout: timeout}}
}

// bookshop runs all of Bookinfo; ratings may be replaced.
func bookshop(t *testing.T, version string, ratings http.Handler) *httptest.Server {
	t.Helper()
	start := func(h http.Handler) *httptest.Server {
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		return s
	}
	if ratings == nil {
		ratings = (&ratingsServer{version: "v1"}).handler()
	}
	rs, ds := start(ratings), start(detailsHandler())
	rv := start(reviewsHandler(version, "pod", func(timeout time.Duration) *backend { return aim(rs, "ratings", timeout) }))
	return start((&shop{aim(ds, "details", pageTimeout), aim(rv, "reviews", pageTimeout)}).handler())
}

func TestBookinfoVersions(t *testing.T) {
	for version, want := range map[string][]string{"v1": {"!glyphicon-star"}, "v2": {`<font color="black">`}, "v3": {`<font color="red">`}} {
		s := bookshop(t, version, nil)
		_, body := get(t, "GET", s.URL+"/productpage", "")
		for _, w := range append(want, "<title>Simple Bookstore App</title>", "Book Details", "PublisherA", "Book Reviews", "Reviewer2", "served by:</dt><dd>pod") {
			w, absent := strings.CutPrefix(w, "!")
			if strings.Contains(body, w) == absent {
				t.Errorf("%s: page %q: %q absent %t", version, body, w, absent)
			}
		}
		if n := strings.Count(body, `glyphicon-star"`); version != "v1" && n != 9 {
			t.Errorf("%s: %d stars, want 5 and 4", version, n)
		}
	}
}

func TestBookinfoLogin(t *testing.T) {
	seen := make(chan string, 4)
	s := bookshop(t, "v2", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Get("end-user") + " " + r.Header.Get("x-b3-traceid")
		answer(w, http.StatusInternalServerError, missing{"fault"})
	}))
	req, err := http.NewRequest(http.MethodPost, s.URL+"/login", strings.NewReader("username=jason&passwd="))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusFound || res.Header.Get("Location") != "/productpage" || len(res.Cookies()) != 1 {
		t.Fatalf("login: %d %v", res.StatusCode, res.Header)
	}
	page, err := http.NewRequest(http.MethodGet, s.URL+"/productpage", nil)
	if err != nil {
		t.Fatal(err)
	}
	page.AddCookie(res.Cookies()[0])
	page.Header.Set("x-b3-traceid", "abc")
	if res, err = http.DefaultTransport.RoundTrip(page); err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var b strings.Builder
	if _, err := copyAll(&b, res.Body); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "<b>jason</b>") || !strings.Contains(b.String(), "Ratings service is currently unavailable") {
		t.Errorf("page is %s", b.String())
	}
	if got := <-seen; got != "jason abc" {
		t.Errorf("ratings saw %q", got)
	}
}

// TestBookinfoReviewsTwice: a page asks twice for reviews and says what is missing.
func TestBookinfoReviewsTwice(t *testing.T) {
	calls := 0
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { calls++; w.WriteHeader(http.StatusGatewayTimeout) }))
	defer bad.Close()
	s := httptest.NewServer((&shop{aim(bad, "details", time.Second), aim(bad, "reviews", time.Second)}).handler())
	defer s.Close()
	res, body := get(t, "GET", s.URL+"/productpage", "")
	for _, want := range []string{"Error fetching product details!", "Error fetching product reviews!",
		"Sorry, product reviews are currently unavailable for this book.", "Sorry, product details are currently unavailable for this book."} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in %s", want, body)
		}
	}
	if res.StatusCode != http.StatusOK || calls != 3 {
		t.Errorf("%d after %d calls", res.StatusCode, calls)
	}
	if res, body := get(t, "GET", s.URL+"/api/v1/products/0/reviews", ""); res.StatusCode != http.StatusGatewayTimeout || !strings.Contains(body, "Sorry") {
		t.Errorf("API: %d %s", res.StatusCode, body)
	}
	if res, body := get(t, "GET", s.URL+"/api/v1/products", ""); res.StatusCode != http.StatusOK || !strings.Contains(body, "Comedy of Errors") {
		t.Errorf("products: %d %s", res.StatusCode, body)
	}
}

func TestBookinfoParts(t *testing.T) {
	for _, c := range []struct {
		s                    *ratingsServer
		method, path, body   string
		code                 int
		want                 string
		details, reviewsPart bool
	}{
		{s: &ratingsServer{version: "v1"}, method: "GET", path: "/ratings/0", code: 200, want: `{"id":0,"ratings":{"Reviewer1":5,"Reviewer2":4}}`},
		{s: &ratingsServer{version: "v1"}, method: "GET", path: "/ratings/x", code: 400, want: `please provide numeric product ID`},
		{s: &ratingsServer{version: "v1"}, method: "POST", path: "/ratings/0", body: `{"a":1}`, code: 200, want: `"a":1`},
		{s: &ratingsServer{version: "v2"}, method: "POST", path: "/ratings/0", body: `{"a":1}`, code: 501, want: `error`},
		{s: &ratingsServer{version: "v2", database: noDatabase}, method: "GET", path: "/ratings/0", code: 500, want: `{"error":"could not connect to ratings database"}`},
		{s: &ratingsServer{version: "v-faulty", chance: func() float64 { return 0.4 }}, method: "GET", path: "/ratings/0", code: 503, want: `Service unavailable`},
		{s: &ratingsServer{version: "v-faulty", chance: func() float64 { return 0.6 }}, method: "GET", path: "/ratings/0", code: 200, want: `Reviewer1`},
		{s: at("v-unavailable", 30*time.Second), method: "GET", path: "/ratings/0", code: 200, want: `Reviewer1`},
		{s: at("v-unavailable", 90*time.Second), method: "GET", path: "/ratings/0", code: 503, want: `Service unavailable`},
		{s: at("v-unhealthy", 20*time.Minute), method: "GET", path: "/health", code: 500, want: `not healthy`},
		{s: at("v-unhealthy", 40*time.Minute), method: "GET", path: "/health", code: 200, want: `is healthy`},
		{method: "GET", path: "/details/0", code: 200, want: `{"id":0,"author":"William Shakespeare","year":1595,"type":"paperback","pages":200,"publisher":"PublisherA","language":"English","ISBN-10"`},
		{method: "GET", path: "/details/x", code: 400, want: `please provide numeric product id`},
	} {
		h := detailsHandler()
		if c.s != nil {
			h = c.s.handler()
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)))
		if w.Code != c.code || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%+v: got %d %s", c, w.Code, w.Body)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		s := &ratingsServer{version: "v-delayed", chance: func() float64 { return 0 }, since: func() time.Duration { return 0 }, pause: 7 * time.Second}
		s.handler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/ratings/0", nil))
		if d := time.Since(start); d != 7*time.Second {
			t.Errorf("v-delayed took %s", d)
		}
	})
}

func noDatabase(context.Context) (map[string]int, error) { return nil, errors.New("none") }

func at(version string, age time.Duration) *ratingsServer {
	return &ratingsServer{version: version, since: func() time.Duration { return age }, chance: func() float64 { return 1 }}
}

func TestMongo(t *testing.T) {
	addr := lineServer(t, mongoConn)
	stars, err := askMongo(t.Context(), "mongodb://"+addr+"/test")
	if err != nil || stars["Reviewer1"] != 5 || stars["Reviewer2"] != 4 {
		t.Errorf("got %v, %v", stars, err)
	}
	if _, err := askMongo(t.Context(), "mongodb://127.0.0.1:"+freePort(t)+"/test"); err == nil {
		t.Error("a database that is not there answers")
	}
	if _, err := askMongo(t.Context(), ":"); err == nil {
		t.Error("a URL that is none is taken")
	}
}

func TestUserOf(t *testing.T) {
	for value, want := range map[string]string{base64.RawURLEncoding.EncodeToString([]byte("jason")): "jason", "***": ""} {
		r := httptest.NewRequest("GET", "/", nil)
		r.AddCookie(&http.Cookie{Name: "session", Value: value})
		if got := userOf(r); got != want {
			t.Errorf("%q is %q, want %q", value, got, want)
		}
	}
}
