package compile

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api/credential"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/model/support"
	"github.com/undermesh/undermesh/controller/validate"
)

// declarations are the objects of the mesh's APIs, as far as their statuses are concerned. Policies of AuthorizationPolicy and
// PeerAuthentication are not among them: their statuses come from compiling them.
type declarations struct {
	all      map[owner]declared
	restate  map[owner]bool // whose status may have changed
	told     map[owner]bool // who has a status of ours
	gateways gateways
	// problems of the Secrets that DestinationRules name, by model.NameOfCredential.
	problems map[model.Name]string
}

type declared struct {
	object metav1.Object
	issues []validate.Field
}

func newDeclarations() declarations {
	return declarations{all: map[owner]declared{}, restate: map[owner]bool{}, told: map[owner]bool{}, gateways: newGateways(), problems: map[model.Name]string{}}
}

// take takes in the events about objects of the mesh's APIs.
func (d *declarations) take(events []model.Event) {
	for _, e := range events {
		if e.Kind == model.KindCredential {
			d.takeCredential(e)
			continue
		}
		if _, ok := model.ResourceOf(e.Kind); !ok || e.Kind == model.KindAuthorizationPolicy || e.Kind == model.KindPeerAuthentication {
			continue
		}
		o := owner{e.Kind, e.Name}
		d.restate[o] = true
		old, now := d.all[o].object, metav1.Object(nil)
		delete(d.all, o)
		if object, ok := e.Object.(metav1.Object); ok {
			now = object
			d.all[o] = declared{object, e.Issues}
		}
		d.gateways.changed(o, old, now, func(o owner) { d.restate[o] = true })
	}
}

// takeCredential takes in what became of a Secret: the statuses of the rules that name it say so.
func (d *declarations) takeCredential(e model.Event) {
	delete(d.problems, e.Name)
	c, ok := e.Object.(model.Credential)
	if !ok {
		return
	}
	if c.Problem != "" {
		d.problems[e.Name] = c.Problem
	}
	for o, declared := range d.all {
		if rule, is := declared.object.(*networkingv1.DestinationRule); is && o.name.Namespace == c.Ref.Namespace && slices.Contains(Credentials(rule), c.Ref) {
			d.restate[o] = true
		}
	}
}

// statuses of the declared objects that may have changed, and of those among the owners. What compiling said of an object
// counts before what is said here, unless it is that the object is gone.
func (c *Compiler) statuses(owners map[owner]bool, compiled []validate.Status) []validate.Status {
	d := &c.declarations
	for o := range owners {
		if _, ok := d.all[o]; ok {
			d.restate[o] = true
		}
	}
	said := map[string]bool{}
	var out []validate.Status
	for _, s := range compiled {
		if _, there := d.all[owner{model.Kind(s.Kind), model.Name{Namespace: s.Namespace, Name: s.Name}}]; s.Gone && there {
			continue
		}
		said[s.Key()] = true
		out = append(out, s)
	}
	for o := range d.restate {
		if s, ok := c.declaredStatus(o); ok && !said[s.Key()] {
			out = append(out, s)
		}
	}
	clear(d.restate)
	return out
}

// declaredStatus returns ok=false for an object that gets no status of ours.
func (c *Compiler) declaredStatus(o owner) (st validate.Status, ok bool) {
	st = newStatus(o.kind, o.name)
	d, there := c.declarations.all[o]
	if !there {
		delete(c.declarations.told, o)
		st.Gone = true
		return st, true
	}
	if st.Parents, ok = c.declarations.gateways.ours(o, d.object); !ok {
		st.Gone = c.declarations.told[o] // it was ours: its status is another's to write now
		delete(c.declarations.told, o)
		return st, st.Gone
	}
	c.declarations.told[o] = true
	if o.kind == model.KindRequestAuthentication && c.reg.Policy(model.StandIn(o.name)) != nil {
		return st, false // the policy in its place speaks for it
	}
	st.Generation, st.Object = d.object.GetGeneration(), d.object
	found := slices.Clone(c.findings[o])
	for _, i := range d.issues {
		f := validate.Finding{Severity: validate.Error, Kind: string(o.kind), Namespace: o.name.Namespace, Name: o.name.Name, Field: i.Path, Message: i.Message}
		if !slices.ContainsFunc(found, func(g validate.Finding) bool { return g.Field == f.Field && g.Message == f.Message }) {
			found = append(found, f)
		}
	}
	st = st.Judge(found, validate.ReasonInvalid, d.consequence())
	if !st.Accepted {
		return st, true
	}
	waiting, never := fieldsWithoutEffect(string(o.kind), d.object)
	for _, more := range []string{unserved(d.object), refusedCalls(d.object, c.credentialProblem)} {
		if more != "" {
			waiting = strings.TrimSuffix(more+"; "+waiting, "; ")
		}
	}
	inert := support.Inert(string(o.kind))
	if inert && waiting == "" && never == "" {
		never = "the mesh does not act on this kind"
	}
	switch {
	case waiting != "" || inert:
		st.AcceptedBy = validate.ReasonNotEnforced
		st.Enforced, st.EnforcedBy = false, validate.ReasonNotEnforced
	case never != "":
		st.EnforcedBy = validate.ReasonPartially
	}
	st.Message = strings.Join(slices.DeleteFunc([]string{waiting, never, st.Message}, func(s string) bool { return s == "" }), "; ")
	return st, true
}

// consequence is what becomes of an object with an error.
func (d declared) consequence() string {
	v, ok := d.object.(*networkingv1.VirtualService)
	switch {
	case ok && len(d.issues) > 0:
		return "it cannot be read as written, and has no effect"
	case ok:
		return validate.Consequence(&v.Spec)
	}
	return "not all of it can be read as written, and that has no effect"
}

// unserved names what a VirtualService binds to gateways, which the mesh does not serve yet; "" for other objects.
func unserved(object metav1.Object) string {
	v, ok := object.(*networkingv1.VirtualService)
	if !ok {
		return ""
	}
	fields := validate.Unserved(&v.Spec)
	if len(fields) == 0 {
		return ""
	}
	return "not enforced yet, since gateways are not served: " + shorten(fields)
}

// credentialProblem says what is wrong with a Secret, "" for nothing, and for one that was not read yet.
func (c *Compiler) credentialProblem(ref credential.Ref) string {
	return c.declarations.problems[model.NameOfCredential(ref)]
}

// mostFields is how many fields a message names.
const mostFields = 8

// fieldsWithoutEffect says which fields of the object do not do what they say yet, and which never will.
func fieldsWithoutEffect(kind string, object metav1.Object) (waiting, never string) {
	spec := reflect.ValueOf(object).Elem().FieldByName("Spec")
	if !spec.IsValid() {
		return "", ""
	}
	var later, unused []support.Field
	for _, f := range support.Ineffective(kind, spec.Addr().Interface()) {
		if f.State == support.Unused {
			unused = append(unused, f)
		} else {
			later = append(later, f)
		}
	}
	if len(later) > 0 {
		waiting = "not enforced yet: " + support.Text(later, mostFields)
		if support.Inert(kind) {
			waiting = "the mesh does not act on this kind yet: " + support.Text(later, mostFields)
		}
	}
	if len(unused) > 0 {
		never = "without effect: " + support.Text(unused, mostFields)
	}
	return waiting, never
}

func shorten(list []string) string {
	if len(list) <= mostFields {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:mostFields], ", "), len(list)-mostFields)
}
