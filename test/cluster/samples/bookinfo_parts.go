package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// details describes an edition of the book.
type details struct {
	ID        int    `json:"id"`
	Author    string `json:"author"`
	Year      int    `json:"year"`
	Type      string `json:"type"`
	Pages     int    `json:"pages"`
	Publisher string `json:"publisher"`
	Language  string `json:"language"`
	ISBN10    string `json:"ISBN-10"`
	ISBN13    string `json:"ISBN-13"`
}

// rating is what a review shows of the reviewer's rating, or why it shows none.
type rating struct {
	Stars int    `json:"stars,omitempty"`
	Color string `json:"color,omitempty"`
	Error string `json:"error,omitempty"`
}

type review struct {
	Reviewer string  `json:"reviewer"`
	Text     string  `json:"text"`
	Rating   *rating `json:"rating,omitempty"`
}

type bookReviews struct {
	ID      string   `json:"id"`
	PodName string   `json:"podname"`
	Reviews []review `json:"reviews"`
}

// bookRatings are the stars of each reviewer.
type bookRatings struct {
	ID      int            `json:"id"`
	Ratings map[string]int `json:"ratings"`
}

// numeric serves items that are named by a number; other names are refused with what.
func numeric(what string, next func(http.ResponseWriter, *http.Request, int)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.Atoi(r.PathValue("id"))
		if err != nil {
			answer(w, http.StatusBadRequest, missing{what})
			return
		}
		next(w, r, id)
	}
}

func healthy(what string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"status": what + " is healthy"})
	}
}

// detailsHandler serves what is known of the book.
func detailsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", healthy("Details"))
	mux.HandleFunc("GET /details/{id}", numeric("please provide numeric product id", func(w http.ResponseWriter, _ *http.Request, id int) {
		answer(w, http.StatusOK, details{id, "William Shakespeare", 1595, "paperback", 200, "PublisherA", "English", "1234567890", "123-1234567890"})
	}))
	return mux
}

// reviewsHandler serves reviews as the version does: v1 without ratings, v2 with black stars and a long timeout, v3 with red ones
// and a short timeout.
func reviewsHandler(version, pod string, ratings func(timeout time.Duration) *backend) http.Handler {
	color, timeout := "", 10*time.Second
	switch version {
	case "v2":
		color = "black"
	case "v3":
		color, timeout = "red", 2500*time.Millisecond
	}
	back := ratings(timeout)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", healthy("Reviews"))
	mux.HandleFunc("GET /reviews/{id}", numeric("please provide numeric product id", func(w http.ResponseWriter, r *http.Request, id int) {
		out := bookReviews{strconv.Itoa(id), pod, []review{
			{Reviewer: "Reviewer1", Text: "Two pairs of twins, one long day, and not a dull line in it."},
			{Reviewer: "Reviewer2", Text: "Light and quick. Whoever looks for the depth of the later plays will not find it here."}}}
		if color != "" {
			var got bookRatings
			status, err := back.get(r, r.PathValue("id"), &got)
			for i := range out.Reviews {
				if rv := &out.Reviews[i]; err != nil || status != http.StatusOK {
					rv.Rating = &rating{Error: "Ratings service is currently unavailable"}
				} else {
					rv.Rating = &rating{Stars: got.Ratings[rv.Reviewer], Color: color}
				}
			}
		}
		answer(w, http.StatusOK, out)
	}))
	return mux
}

// ratingsServer is the ratings service in one of its versions: v1, v2 (which asks a database), and those with a fault of their own.
type ratingsServer struct {
	version  string
	database func(context.Context) (map[string]int, error) // of v2
	chance   func() float64                                // below 1
	since    func() time.Duration                          // since the start
	pause    time.Duration                                 // of v-delayed
}

// away tells whether the version is unavailable now: every second minute, or quarter of an hour.
func (s *ratingsServer) away() bool {
	period := map[string]time.Duration{"v-unavailable": time.Minute, "v-unhealthy": 15 * time.Minute}[s.version]
	return period > 0 && int(s.since()/period)%2 == 1
}

func (s *ratingsServer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		if s.version == "v-unhealthy" && s.away() {
			answer(w, http.StatusInternalServerError, map[string]string{"status": "Ratings is not healthy"})
			return
		}
		answer(w, http.StatusOK, map[string]string{"status": "Ratings is healthy"})
	})
	const refused = "please provide numeric product ID"
	mux.HandleFunc("GET /ratings/{id}", numeric(refused, s.get))
	mux.HandleFunc("POST /ratings/{id}", numeric(refused, func(w http.ResponseWriter, r *http.Request, id int) {
		stars := map[string]int{}
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&stars); err != nil {
			answer(w, http.StatusBadRequest, missing{"please provide valid ratings JSON"})
			return
		}
		if s.version == "v2" {
			answer(w, http.StatusNotImplemented, missing{"Post not implemented for database backed ratings"})
			return
		}
		answer(w, http.StatusOK, bookRatings{id, stars})
	}))
	return mux
}

func (s *ratingsServer) get(w http.ResponseWriter, r *http.Request, id int) {
	out := bookRatings{id, map[string]int{"Reviewer1": 5, "Reviewer2": 4}}
	switch {
	case s.version == "v2":
		stars, err := s.database(r.Context())
		if err != nil {
			answer(w, http.StatusInternalServerError, missing{"could not connect to ratings database"})
			return
		}
		out.Ratings = stars
	case s.version == "v-faulty" && s.chance() < 0.5, s.away():
		answer(w, http.StatusServiceUnavailable, missing{"Service unavailable"})
		return
	case s.version == "v-delayed" && s.chance() < 0.5:
		t := time.NewTimer(s.pause)
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.Context().Done():
			return
		}
	}
	answer(w, http.StatusOK, out)
}

// mongoTimeout bounds one question to the database.
const mongoTimeout = 5 * time.Second

// askMongo asks the database of the sample, which is named as MongoDB is, for the ratings. Each question has its own connection.
func askMongo(ctx context.Context, where string) (map[string]int, error) {
	u, err := url.Parse(where)
	if err != nil {
		return nil, fmt.Errorf("parse URL of database: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, mongoTimeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, fmt.Errorf("connect to database: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if _, err := io.WriteString(c, "find ratings\n"); err != nil {
		return nil, fmt.Errorf("ask database: %w", err)
	}
	line, err := bufio.NewReader(io.LimitReader(c, maxBody)).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("read answer of database: %w", err)
	}
	stars := map[string]int{}
	if err := json.Unmarshal([]byte(line), &stars); err != nil {
		return nil, fmt.Errorf("parse answer of database: %w", err)
	}
	return stars, nil
}

// mongo is the database: it answers each line with the ratings.
func mongo(ctx context.Context, _ []string) error {
	return listenAll(ctx, []string{"27017"}, mongoConn)
}

func mongoConn(c net.Conn) {
	for r := bufio.NewReader(c); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		out := `{"Reviewer1": 5, "Reviewer2": 4}`
		if strings.TrimSpace(line) != "find ratings" {
			out = `{}`
		}
		if _, err := io.WriteString(c, out+"\n"); err != nil {
			return
		}
	}
}

// bookinfoPart serves details, reviews or ratings. A port may be its argument; SERVICE_VERSION is the version, v1 when unset.
func bookinfoPart(name string) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		addr, version := bookinfoAddr, cmp.Or(os.Getenv("SERVICE_VERSION"), "v1")
		if len(args) > 0 {
			addr = ":" + args[0]
		}
		pod, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("read host name: %w", err)
		}
		start := time.Now()
		var h http.Handler
		switch name {
		case "details":
			h = detailsHandler()
		case "reviews":
			h = reviewsHandler(version, pod, func(t time.Duration) *backend { return newBackend("RATINGS_HOSTNAME", "ratings", t) })
		case "ratings":
			s := &ratingsServer{version: version, chance: rand.Float64, since: func() time.Duration { return time.Since(start) }, pause: 7 * time.Second}
			s.database = func(ctx context.Context) (map[string]int, error) { return askMongo(ctx, os.Getenv("MONGO_DB_URL")) }
			h = s.handler()
		default:
			return errors.New("there is no service " + name)
		}
		return serve(ctx, addr, accessLog(os.Stdout, h))
	}
}
