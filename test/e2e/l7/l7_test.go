package l7

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/corpus"
	"github.com/undermesh/undermesh/test/e2e"
)

// Namespaces of the fixture. The first is in the mesh and has servers that say which version they are, the second is not.
const (
	inside  = "tutorial"
	outside = "legacy"
)

var prepare = sync.OnceValue(func() error {
	w, err := e2e.Find(func(string, ...any) {})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := w.Fixture(ctx); err != nil {
		return err
	}
	if err := deploy(ctx, w, inside, servers, "sleep", "tcp-echo/tcp-echo-services"); err != nil {
		return err
	}
	if err := deploy(ctx, w, outside, ""); err != nil {
		return err
	}
	return w.Enrol(ctx, append([]string{inside}, e2e.Meshed...)...)
})

// deploy applies samples, text, and a caller that is a preference of version v2.
func deploy(ctx context.Context, w *e2e.World, namespace, text string, samples ...string) error {
	if err := w.Apply(ctx, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+namespace+"}\n"); err != nil {
		return err
	}
	if _, err := w.KubectlIn(ctx, []byte(text+preference), "apply", "-n", namespace, "-f", "-"); err != nil {
		return err
	}
	return w.Deploy(ctx, namespace, "", samples...)
}

// preference is a caller with labels.
const preference = `---
apiVersion: apps/v1
kind: Deployment
metadata: {name: preference-v2}
spec:
  selector: {matchLabels: {app: preference, version: v2}}
  template:
    metadata: {labels: {app: preference, version: v2}}
    spec:
      terminationGracePeriodSeconds: 0
      nodeSelector: {kubernetes.io/hostname: node1}
      containers: [{name: sleep, image: curlimages/curl, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}]
`

// echoes are servers of a version.
func echoes(version string, replicas int) string {
	return fmt.Sprintf(`---
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo-%[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: echo, version: %[1]s}}
  template:
    metadata: {labels: {app: echo, version: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: echo, version: %[1]s}}}
      containers:
      - name: echo
        image: localhost/undermesh/samples
        imagePullPolicy: Never
        args: [echo, "8080", "8081", "tls:8443"]
        env: [{name: SERVICE_VERSION, value: %[1]s}]
`, version, replicas)
}

func echoService(name string) string {
	return `---
apiVersion: v1
kind: Service
metadata: {name: ` + name + `}
spec:
  selector: {app: echo}
  ports:
  - {name: http, port: 8080}
  - {name: http-other, port: 8081}
  - {name: grpc, port: 9090, targetPort: 8080}
  - {name: tls, port: 8443}
`
}

var servers = echoService("recommendation") + echoService("ratings") + echoService("my-svc") + echoes("v1", 2) + echoes("v2", 2) + echoes("v3", 1) + `---
apiVersion: v1
kind: Service
metadata: {name: postgresql}
spec: {selector: {app: postgresql}, ports: [{name: tcp, port: 5432}, {name: tcp-other, port: 5555}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: postgresql}
spec:
  selector: {matchLabels: {app: postgresql}}
  template:
    metadata: {labels: {app: postgresql}}
    spec:
      terminationGracePeriodSeconds: 0
      nodeSelector: {kubernetes.io/hostname: node2}
      containers:
      - {name: usual, image: "docker.io/istio/tcp-echo-server:1.2", imagePullPolicy: IfNotPresent, args: ["5432", usual]}
      - {name: moved, image: "docker.io/istio/tcp-echo-server:1.2", imagePullPolicy: IfNotPresent, args: ["5555", moved]}
`

// meshed gives a world with the fixture.
func meshed(t *testing.T) (context.Context, *e2e.World) {
	t.Helper()
	if os.Getenv("MESH_TEST_CLUSTER") != "1" {
		t.Skip("needs a cluster with the mesh: make test-cluster")
	}
	if err := prepare(); err != nil {
		t.Fatal(err)
	}
	w, err := e2e.Find(func(format string, args ...any) { t.Logf(format, args...) })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx, w
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// seedFile finds a document of the corpus by its number.
func seedFile(t *testing.T, number string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(corpus.Dir(t), number+"-*.yaml"))
	if err != nil || len(files) != 1 {
		t.Fatalf("document %s of the corpus: %v, %v", number, files, err)
	}
	return files[0]
}

// seed reads a document of the corpus.
func seed(t *testing.T, number string) string {
	t.Helper()
	b, err := os.ReadFile(seedFile(t, number))
	check(t, err)
	return string(b)
}

// place is where calls come from.
type place struct {
	*e2e.World
	namespace, deployment string
}

// expect is a question and what is wanted of the answers.
type expect struct {
	e2e.Question
	want want
}

// want judges the answers to one question; what is wrong with them is all that it says.
type want func([]e2e.Answer) error

// asks wants all questions to be answered as they must.
func asks(all ...expect) func(context.Context, place) error {
	return func(ctx context.Context, p place) error {
		questions := make([]e2e.Question, len(all))
		for i, e := range all {
			questions[i] = e.Question
		}
		answers, err := p.Ask(ctx, p.namespace, p.deployment, questions...)
		if err != nil {
			return err
		}
		for i, e := range all {
			if err := e.want(answers[i]); err != nil {
				return fmt.Errorf("%w: %s %s %v from %s/%s: %w", e2e.ErrOther, e.Method, e.URL, e.Headers, p.namespace, p.deployment, err)
			}
		}
		return nil
	}
}

// row is a capability that a resource switches on.
type row struct {
	ids, title string
	resource   string // applied to the namespace
	namespace  string // of the resource and the caller; "": inside
	from       string // who calls; "": sleep
	look       func(context.Context, place) error
	// changed is another resource under which the row must not hold, where it does without any; nothing: it does not.
	changed  string
	unmeshed string // why the same is seen outside the mesh; "": it is not
	apart    bool   // the resource names its namespaces itself
}

// into is the namespace of objects that name none.
func (r *row) into(p place) string {
	if r.apart {
		return ""
	}
	return p.namespace
}

func (r *row) place(w *e2e.World) place {
	p := place{w, inside, "sleep"}
	if r.namespace != "" {
		p.namespace = r.namespace
	}
	if r.from != "" {
		p.deployment = r.from
	}
	return p
}

// expects waits until the row is seen, or its opposite.
func (r *row) expects(ctx context.Context, p place, holds bool) error {
	return e2e.Until(ctx, 20*time.Second, fmt.Sprintf("%s from %s to be %t", r.title, p.namespace, holds), func(ctx context.Context) error {
		err := r.look(ctx, p)
		switch {
		case holds:
			return err
		case errors.Is(err, e2e.ErrOther):
			return nil
		case err == nil:
			return errors.New("it holds")
		}
		return err
	})
}

// with applies a resource to a namespace until the returned function is called, or the test ends.
func with(ctx context.Context, t *testing.T, w *e2e.World, namespace, resource string) (remove func()) {
	t.Helper()
	if resource == "" {
		return func() {}
	}
	of := []string{"-f", "-"}
	if namespace != "" {
		of = append(of, "-n", namespace)
	}
	_, err := w.KubectlIn(ctx, []byte(resource), append([]string{"apply"}, of...)...)
	check(t, err)
	done := false
	remove = func() {
		if done {
			return
		}
		done = true
		_, err := w.KubectlIn(context.WithoutCancel(ctx), []byte(resource), append([]string{"delete", "--ignore-not-found", "--wait"}, of...)...)
		check(t, err)
	}
	t.Cleanup(remove)
	return remove
}

// observe looks at a row with its resource, and at its controls.
func observe(ctx context.Context, t *testing.T, w *e2e.World, r *row) {
	t.Helper()
	p := r.place(w)
	control := "without the resource"
	if r.changed != "" {
		control = "with another resource"
	}
	t.Run(r.ids+" control: "+control, func(t *testing.T) {
		defer with(ctx, t, w, r.into(p), r.changed)()
		check(t, r.expects(ctx, p, false))
	})
	remove := with(ctx, t, w, r.into(p), r.resource)
	defer remove()
	t.Run(r.ids+" "+r.title, func(t *testing.T) { check(t, r.expects(ctx, p, true)) })
	t.Run(r.ids+" control: outside the mesh", func(t *testing.T) {
		check(t, r.expects(ctx, place{w, outside, p.deployment}, r.unmeshed != ""))
	})
}

// observeAll looks at rows one after the other, each with a time of its own.
func observeAll(t *testing.T, rows []row) {
	_, w := meshed(t)
	for i := range rows {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		observe(ctx, t, w, &rows[i])
		cancel()
	}
}

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
