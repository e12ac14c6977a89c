// Package webhook answers the API server before it stores an object of the mesh: what cannot be done as written is refused
// with its field, what is doubtful is told as a warning. It judges with the engine of the CLI and of the statuses.
//
// Invariants: it changes nothing; it never stands in the way of an object whose spec stays as it is, so that what is stored
// already can be finalised and annotated; objects of other people (workloads, the Gateway API) are warned about, never
// refused. It is a help, not the guard: without it the compiler denies what it cannot enforce, and the status says so.
package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/quota"
	"github.com/undermesh/undermesh/controller/validate"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Limits of one review.
const (
	maxBody     = 8 << 20 // bytes: an object and what it was; the API server stores 1.5 MiB each
	maxWarnings = 20
	maxWarning  = 256 // bytes; the API server cuts longer ones
	maxErrors   = 10  // that are named in a refusal
)

// Limits of all reviews together. The API server proves itself by nothing (it has a client certificate only where an operator
// configured one), so whoever reaches the port is served, by address: nobody takes all of it.
const (
	maxBytes     = 4 * maxBody             // of bodies in memory
	bytesEach    = maxBody + 1<<20         // of one address
	firstBytes   = 32 << 10                // of one body, before more is asked for
	reviewsNow   = 4                       // judged at once
	reviewsEach  = 2                       // of one address
	reviewsWait  = 64                      // of one address
	reviewPeriod = 3500 * time.Millisecond // until it is one's turn; the API server waits 5 s for the answer
)

// Path is where reviews are asked for.
const Path = "/validate"

// Config of a Handler.
type Config struct {
	Catalogue *validate.Catalogue   // required
	Log       *slog.Logger          // default slog.DiscardHandler
	Metrics   prometheus.Registerer // default: none are registered
	Clock     clock.Clock           // default clock.System()
}

// Handler is an http.Handler of admission reviews. It is safe for concurrent use.
type Handler struct {
	catalogue *validate.Catalogue
	log       *slog.Logger
	mux       *http.ServeMux
	reviews   *prometheus.CounterVec
	clock     clock.Clock
	bytes     *quota.Amounts[netip.Addr]
	turns     *quota.Turns[netip.Addr]
}

// New returns a Handler.
func New(cfg Config) (*Handler, error) {
	if cfg.Catalogue == nil {
		return nil, errors.New("check webhook config: Catalogue: missing")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.System()
	}
	h := &Handler{catalogue: cfg.Catalogue, log: cfg.Log, mux: http.NewServeMux(), reviews: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "galley_validation_total", Help: "Objects that admission judged, by result: passed, warned, failed, unreadable, or busy.",
	}, []string{"result"}), clock: cfg.Clock,
		bytes: quota.NewAmounts[netip.Addr](maxBytes, bytesEach), turns: quota.NewTurns[netip.Addr](reviewsNow, reviewsEach, reviewsWait)}
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(h.reviews); err != nil {
			return nil, fmt.Errorf("register metrics of admission: %w", err)
		}
	}
	h.mux.HandleFunc("POST "+Path, h.serve)
	return h, nil
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

func (h *Handler) serve(w http.ResponseWriter, r *http.Request) {
	from := quota.Addr(r.RemoteAddr)
	body, held, err := h.read(http.MaxBytesReader(w, r.Body, maxBody), from)
	defer h.bytes.Give(from, held)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, errBusy):
		h.busy(w, err)
		return
	case errors.As(err, &tooLarge):
		h.unreadable(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the review is larger than %d bytes", maxBody))
		return
	case err != nil:
		h.unreadable(w, http.StatusBadRequest, err.Error())
		return
	}
	ctx, cancel := clock.WithTimeout(r.Context(), h.clock, reviewPeriod, errBusy)
	defer cancel()
	leave, err := h.turns.Enter(ctx, from)
	if err != nil {
		h.busy(w, err)
		return
	}
	defer leave()
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil || review.Request == nil || review.Request.UID == "" {
		h.unreadable(w, http.StatusBadRequest, "the body is not an AdmissionReview with a request")
		return
	}
	answer := h.Review(review.Request)
	review.Request, review.Response = nil, answer
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(review); err != nil {
		h.log.Debug("answer review", "err", err)
	}
}

// errBusy says that others have what a review needs. The API server stores the object then: statuses tell what is wrong.
var errBusy = errors.New("too many reviews at once")

// read reads a body into memory that is counted before it is taken; held is to be given back. Returns errBusy when there is no
// more of it.
func (h *Handler) read(r io.Reader, from netip.Addr) (body []byte, held int, err error) {
	for next := firstBytes; ; next = min(2*cap(body), maxBody+1) {
		if !h.bytes.Take(from, next-held) {
			return nil, held, errBusy
		}
		held = next
		body = append(make([]byte, 0, next), body...)
		for len(body) < cap(body) {
			n, err := r.Read(body[len(body):cap(body)])
			body = body[:len(body)+n]
			if errors.Is(err, io.EOF) {
				return body, held, nil
			}
			if err != nil {
				return nil, held, err
			}
		}
	}
}

func (h *Handler) busy(w http.ResponseWriter, err error) {
	h.reviews.WithLabelValues("busy").Inc()
	http.Error(w, err.Error(), http.StatusServiceUnavailable)
}

func (h *Handler) unreadable(w http.ResponseWriter, code int, why string) {
	h.reviews.WithLabelValues("unreadable").Inc()
	http.Error(w, why, code)
}

// Review judges one request. Requests without a new object (removals) pass.
func (h *Handler) Review(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	out := &admissionv1.AdmissionResponse{UID: r.UID, Allowed: true}
	if len(r.Object.Raw) == 0 || (r.Operation != admissionv1.Create && r.Operation != admissionv1.Update) {
		h.reviews.WithLabelValues("passed").Inc()
		return out
	}
	var wrong []validate.Finding
	mine := refused(r.Kind)
	for _, f := range h.catalogue.Object(r.Object.Raw) {
		switch {
		case f.Severity == validate.Error && mine:
			wrong = append(wrong, f)
		case f.Severity >= validate.Warning:
			out.Warnings = append(out.Warnings, line(f))
		}
	}
	if len(wrong) > 0 && r.Operation == admissionv1.Update && sameSpec(r.Object.Raw, r.OldObject.Raw) {
		for _, f := range wrong {
			out.Warnings = append(out.Warnings, line(f))
		}
		wrong = nil
	}
	slices.Sort(out.Warnings)
	out.Warnings = slices.Compact(out.Warnings)
	if n := len(out.Warnings); n > maxWarnings {
		out.Warnings = append(out.Warnings[:maxWarnings], fmt.Sprintf("and %d more", n-maxWarnings))
	}
	switch {
	case len(wrong) > 0:
		h.reviews.WithLabelValues("failed").Inc()
		out.Allowed, out.Result = false, refusal(r, wrong)
		h.log.Info("object refused", "kind", r.Kind.Kind, "object", r.Namespace+"/"+r.Name, "err", out.Result.Message)
	case len(out.Warnings) > 0:
		h.reviews.WithLabelValues("warned").Inc()
	default:
		h.reviews.WithLabelValues("passed").Inc()
	}
	return out
}

// refused says whether objects of the kind are refused when they are wrong: those of the mesh's own API, and its
// configuration. All others have somebody else who says what is right.
func refused(k metav1.GroupVersionKind) bool {
	return k.Group == "istio.io" || strings.HasSuffix(k.Group, ".istio.io") || (k.Group == "" && k.Kind == "ConfigMap")
}

// line is a finding as a warning: the object is known to who applied it.
func line(f validate.Finding) string {
	text := f.Message
	if f.Field != "" {
		text = f.Field + ": " + text
	}
	if f.Hint != "" {
		text += " (" + f.Hint + ")"
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, text)
	if len(text) > maxWarning {
		text = strings.ToValidUTF8(text[:maxWarning-3], "") + "…"
	}
	return text
}

// refusal says why an object is refused, field by field.
func refusal(r *admissionv1.AdmissionRequest, wrong []validate.Finding) *metav1.Status {
	name := r.Name
	if name == "" && len(wrong) > 0 {
		name = wrong[0].Name
	}
	if r.Namespace != "" {
		name = r.Namespace + "/" + name
	}
	s := &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
		Details: &metav1.StatusDetails{Name: r.Name, Group: r.Kind.Group, Kind: r.Kind.Kind}}
	var lines []string
	for i, f := range wrong {
		if i == maxErrors {
			lines = append(lines, fmt.Sprintf("and %d more", len(wrong)-maxErrors))
			break
		}
		lines = append(lines, line(f))
		field := f.Field
		f.Field = "" // kubectl writes it before the text
		s.Details.Causes = append(s.Details.Causes, metav1.StatusCause{Type: metav1.CauseTypeFieldValueInvalid, Message: line(f), Field: field})
	}
	s.Message = fmt.Sprintf("%s %s: %s", r.Kind.Kind, name, strings.Join(lines, "; "))
	return s
}

// sameSpec says whether an update leaves alone what is judged: all but the metadata and the status.
func sameSpec(now, before []byte) bool {
	var a, b map[string]any
	if json.Unmarshal(now, &a) != nil || json.Unmarshal(before, &b) != nil || a == nil || b == nil {
		return false
	}
	for _, k := range []string{"apiVersion", "metadata", "status"} {
		delete(a, k)
		delete(b, k)
	}
	return reflect.DeepEqual(a, b)
}
