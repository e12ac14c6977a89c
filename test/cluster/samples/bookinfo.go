package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

// The Bookinfo page and the services that it is made of listen on this port.
const bookinfoAddr = ":9080"

// Timeouts of the page's own calls: a review is asked for twice. The documents' walks through faults depend on both.
const (
	pageTimeout = 3 * time.Second
	reviewTries = 2
)

// forwarded are the headers that the services pass on from a request to those that it causes.
var forwarded = []string{"x-request-id", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags", "b3",
	"x-ot-span-context", "x-datadog-trace-id", "x-datadog-parent-id", "x-datadog-sampling-priority", "traceparent", "tracestate",
	"x-cloud-trace-context", "grpc-trace-bin", "user-agent", "end-user", "authorization"}

// book is the one that the shop has.
type book struct {
	ID          int    `json:"id"`
	Title       string `json:"title"`
	Description string `json:"descriptionHtml"`
}

var theBook = book{0, "The Comedy of Errors", "One of <b>Shakespeare's</b> early plays, and his shortest: twins are taken for each other."}

// backend is a service that others call.
type backend struct {
	url    string // without a final slash
	client *http.Client
}

// newBackend takes the host from the environment variable, and the domain from SERVICES_DOMAIN. Each call has a connection of its own,
// as those of the original have.
func newBackend(variable, name string, timeout time.Duration) *backend {
	host := cmp.Or(os.Getenv(variable), name)
	if d := os.Getenv("SERVICES_DOMAIN"); d != "" {
		host += "." + d
	}
	return &backend{"http://" + host + bookinfoAddr + "/" + name, &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true}}}
}

// get asks for one item as part of the request in. The error says that there was no whole answer; status is 500 then.
func (b *backend) get(in *http.Request, id string, to any) (status int, err error) {
	req, err := http.NewRequestWithContext(in.Context(), http.MethodGet, b.url+"/"+id, nil)
	if err != nil {
		return http.StatusInternalServerError, fmt.Errorf("make request of %s: %w", b.url, err)
	}
	for _, h := range forwarded {
		if v := in.Header.Get(h); v != "" {
			req.Header.Set(h, v)
		}
	}
	if user := userOf(in); user != "" {
		req.Header.Set("end-user", user)
	}
	res, err := b.client.Do(req)
	if err != nil {
		return http.StatusInternalServerError, fmt.Errorf("call %s: %w", b.url, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil {
		return http.StatusInternalServerError, fmt.Errorf("read answer of %s: %w", b.url, err)
	}
	if res.StatusCode != http.StatusOK {
		return res.StatusCode, nil
	}
	if err := json.Unmarshal(body, to); err != nil {
		return http.StatusInternalServerError, fmt.Errorf("parse answer of %s: %w", b.url, err)
	}
	return res.StatusCode, nil
}

// userOf is who is logged in, "" for nobody.
func userOf(r *http.Request) string {
	c, err := r.Cookie("session")
	if err != nil {
		return ""
	}
	name, err := base64.RawURLEncoding.DecodeString(c.Value)
	if err != nil {
		return ""
	}
	return string(name)
}

// missing is a part of the page that is missing.
type missing struct {
	Error string `json:"error"`
}

// shop is the page's server.
type shop struct{ details, reviews *backend }

// productpage serves the Bookinfo page. Its only argument, a port, may be left out.
func productpage(ctx context.Context, args []string) error {
	addr := bookinfoAddr
	if len(args) > 0 {
		addr = ":" + args[0]
	}
	s := &shop{newBackend("DETAILS_HOSTNAME", "details", pageTimeout), newBackend("REVIEWS_HOSTNAME", "reviews", pageTimeout)}
	return serve(ctx, addr, accessLog(os.Stdout, s.handler()))
}

func (s *shop) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { render(w, indexPage, nil) })
	mux.HandleFunc("GET /index.html", func(w http.ResponseWriter, _ *http.Request) { render(w, indexPage, nil) })
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "Product page is healthy") })
	mux.HandleFunc("GET /productpage", s.page)
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		name := base64.RawURLEncoding.EncodeToString([]byte(r.PostFormValue("username")))
		http.SetCookie(w, &http.Cookie{Name: "session", Value: name, Path: "/", HttpOnly: true})
		back(w, r)
	})
	mux.HandleFunc("GET /logout", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "session", Path: "/", MaxAge: -1})
		back(w, r)
	})
	mux.HandleFunc("GET /api/v1/products", func(w http.ResponseWriter, _ *http.Request) { reply(w, []book{theBook}) })
	mux.HandleFunc("GET /api/v1/products/{id}", func(w http.ResponseWriter, r *http.Request) {
		status, v := s.detailsOf(r, r.PathValue("id"))
		answer(w, status, v)
	})
	mux.HandleFunc("GET /api/v1/products/{id}/reviews", func(w http.ResponseWriter, r *http.Request) {
		status, v := s.reviewsOf(r, r.PathValue("id"))
		answer(w, status, v)
	})
	ratings := newBackend("RATINGS_HOSTNAME", "ratings", pageTimeout)
	mux.HandleFunc("GET /api/v1/products/{id}/ratings", func(w http.ResponseWriter, r *http.Request) {
		var v map[string]any
		status, err := ratings.get(r, r.PathValue("id"), &v)
		if err != nil || status != http.StatusOK {
			answer(w, status, missing{"Sorry, product ratings are currently unavailable for this book."})
			return
		}
		answer(w, status, v)
	})
	return mux
}

// back leads to the page that a form was on.
func back(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Location", cmp.Or(r.Referer(), "/productpage"))
	w.WriteHeader(http.StatusFound)
}

// answer writes v as JSON with a status.
func answer(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone
}

func (s *shop) detailsOf(r *http.Request, id string) (int, any) {
	var v details
	status, err := s.details.get(r, id, &v)
	if err != nil || status != http.StatusOK {
		return status, missing{"Sorry, product details are currently unavailable for this book."}
	}
	return status, v
}

func (s *shop) reviewsOf(r *http.Request, id string) (int, any) {
	status := http.StatusInternalServerError
	for range reviewTries {
		var v bookReviews
		got, err := s.reviews.get(r, id, &v)
		if status = got; err == nil && got == http.StatusOK {
			return got, v
		}
	}
	return status, missing{"Sorry, product reviews are currently unavailable for this book."}
}

func (s *shop) page(w http.ResponseWriter, r *http.Request) {
	p := struct {
		Book             book
		Description      template.HTML
		User             string
		Details, Reviews any
		NoDetails, NoRev string
	}{Book: theBook, Description: template.HTML(theBook.Description), User: userOf(r)}
	_, p.Details = s.detailsOf(r, "0")
	if m, ok := p.Details.(missing); ok {
		p.NoDetails = m.Error
	}
	_, p.Reviews = s.reviewsOf(r, "0")
	if m, ok := p.Reviews.(missing); ok {
		p.NoRev = m.Error
	}
	render(w, productPage, p)
}

func render(w http.ResponseWriter, t *template.Template, v any) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_ = t.Execute(w, v) // the client may be gone
}

var indexPage = template.Must(template.New("index").Parse(`<!DOCTYPE html>
<html><head><title>Simple Bookstore App</title></head>
<body><h1>Bookinfo</h1><p><a href="/productpage">The page of the book</a></p></body></html>
`))

var productPage = template.Must(template.New("product").Funcs(template.FuncMap{
	"stars": func(full int) []string {
		out := make([]string, 5)
		for i := range out {
			out[i] = "glyphicon-star-empty"
			if i < full {
				out[i] = "glyphicon-star"
			}
		}
		return out
	},
}).Parse(`<!DOCTYPE html>
<html>
<head><title>Simple Bookstore App</title><meta charset="utf-8"></head>
<body>
{{if .User}}<p><b>{{.User}}</b> (<a href="logout">sign out</a>)</p>
{{else}}<form method="post" action="login"><input name="username" placeholder="User Name"><input name="passwd" type="password"><button>Sign in</button></form>
{{end}}<h3>{{.Book.Title}}</h3>
<p>Summary: {{.Description}}</p>
{{if .NoDetails}}<h4>Error fetching product details!</h4>
<p>{{.NoDetails}}</p>
{{else}}<h4>Book Details</h4>
<dl>
<dt>Type:</dt><dd>{{.Details.Type}}</dd>
<dt>Pages:</dt><dd>{{.Details.Pages}}</dd>
<dt>Publisher:</dt><dd>{{.Details.Publisher}}</dd>
<dt>Language:</dt><dd>{{.Details.Language}}</dd>
<dt>ISBN-10:</dt><dd>{{.Details.ISBN10}}</dd>
<dt>ISBN-13:</dt><dd>{{.Details.ISBN13}}</dd>
</dl>
{{end}}{{if .NoRev}}<h4>Error fetching product reviews!</h4>
<p>{{.NoRev}}</p>
{{else}}<h4>Book Reviews</h4>
{{range .Reviews.Reviews}}<blockquote><p>{{.Text}}</p><small>{{.Reviewer}}</small>
{{with .Rating}}{{if .Stars}}<font color="{{.Color}}">
{{range stars .Stars}}<span class="glyphicon {{.}}"></span>
{{end}}</font>
{{end}}{{if .Error}}<p><i>{{.Error}}</i></p>
{{end}}{{end}}</blockquote>
{{end}}<dl><dt>Reviews served by:</dt><dd>{{.Reviews.PodName}}</dd></dl>
{{end}}</body>
</html>
`))
