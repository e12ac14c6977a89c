package status

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// condition is one condition as all writers store it.
type condition struct {
	name, status, reason, message string
}

func conditionsOf(s validate.Status) []condition {
	word := func(b bool) string {
		if b {
			return "True"
		}
		return "False"
	}
	message := bounded(s.Message)
	out := []condition{
		{ConditionAccepted, word(s.Accepted), s.AcceptedBy, message},
		{ConditionEnforced, word(s.Enforced), s.EnforcedBy, message},
	}
	if model.Kind(s.Kind) == model.KindKubeGateway {
		out = append(out, condition{ConditionProgrammed, word(s.Enforced), s.EnforcedBy, message})
	}
	return out
}

// maxMessage bounds what a condition says, in bytes: it names what is wrong thing by thing, an object may be full of them,
// and a status that the API server does not take tells nobody anything.
const maxMessage = 8 << 10

func bounded(message string) string {
	const more = " … and more"
	if len(message) <= maxMessage {
		return message
	}
	return strings.ToValidUTF8(message[:maxMessage-len(more)], "") + more
}

// render makes the list of our conditions; had are the conditions that the object has, by type. A condition keeps the time
// of its last change. changed reports whether one of them differs from what is there.
func render(s validate.Status, had map[string]map[string]any, now time.Time) (list []any, changed bool) {
	for _, c := range conditionsOf(s) {
		before := had[c.name]
		m := map[string]any{"type": c.name, "status": c.status, "reason": c.reason, "message": c.message,
			"observedGeneration": s.Generation, "lastTransitionTime": before["lastTransitionTime"]}
		if before["status"] != c.status || m["lastTransitionTime"] == nil {
			m["lastTransitionTime"] = now.UTC().Format(time.RFC3339)
		}
		for _, field := range []string{"status", "reason", "message", "observedGeneration"} {
			if text(before[field]) != text(m[field]) {
				changed = true
			}
		}
		list = append(list, m)
	}
	return list, changed
}

// text makes values of different decoders equal: a generation may be a number or a string, and is left out when it is 0.
func text(v any) string {
	if v == nil || v == int64(0) {
		return ""
	}
	return fmt.Sprint(v)
}

// byType indexes a list of conditions; what has another shape is left out.
func byType(conditions any) map[string]map[string]any {
	out := map[string]map[string]any{}
	list, _ := conditions.([]any)
	for _, c := range list {
		m, _ := c.(map[string]any)
		if name, ok := m["type"].(string); ok {
			out[name] = m
		}
	}
	return out
}

// validationMessages are the findings as Istio's statuses have them: without text, which is in the conditions.
func validationMessages(s validate.Status) []any {
	const code = "IST0106" // SchemaValidationError of Istio's analysers
	if s.Accepted {
		return nil
	}
	return []any{map[string]any{"level": "ERROR", "type": map[string]any{"name": "SchemaValidationError", "code": code},
		"documentationUrl": "https://istio.io/latest/docs/reference/config/analysis/ist0106/"}}
}

// routeParents returns the parents of a route's status as they should be: those of other controllers as they are, ours
// after them. changed reports whether that differs from what is there.
func routeParents(s validate.Status, now map[string]any, at time.Time) (list []any, changed bool, err error) {
	old, _ := now["parents"].([]any)
	had := map[string]map[string]map[string]any{} // parentRef → conditions
	for _, p := range old {
		m, _ := p.(map[string]any)
		if m["controllerName"] != model.GatewayController {
			list = append(list, p)
			continue
		}
		ref, err := json.Marshal(m["parentRef"])
		if err != nil {
			return nil, false, fmt.Errorf("read parent of %s: %w", s.Key(), err)
		}
		had[string(ref)] = byType(m["conditions"])
	}
	foreign := len(list)
	for _, p := range s.Parents {
		data, err := json.Marshal(p)
		if err != nil {
			return nil, false, fmt.Errorf("encode parent of %s: %w", s.Key(), err)
		}
		var ref map[string]any
		if err := json.Unmarshal(data, &ref); err != nil {
			return nil, false, fmt.Errorf("encode parent of %s: %w", s.Key(), err)
		}
		key, err := json.Marshal(ref) // keys sorted, as above
		if err != nil {
			return nil, false, fmt.Errorf("encode parent of %s: %w", s.Key(), err)
		}
		before, known := had[string(key)]
		conditions, differs := render(s, before, at)
		changed = changed || differs || !known
		list = append(list, map[string]any{"parentRef": ref, "controllerName": model.GatewayController, "conditions": conditions})
	}
	return slices.Clip(list), changed || len(list)-foreign != len(old)-foreign, nil
}
