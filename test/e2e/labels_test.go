package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// marks are labels and annotations, as kubectl takes them: KEY=VALUE sets, KEY- removes.
type mark struct{ verb, object, namespace, set, unset string }

// TestEnrolmentLabels judges labels and annotations by what bar, which is STRICT, answers: it lets in who is captured. Each row's
// control is the same question without the mark, or without the mark that beats it.
func TestEnrolmentLabels(t *testing.T) {
	ctx, w := meshed(t)
	legacy, err := w.OnePod(ctx, "legacy", "sleep")
	check(t, err)
	foo, err := w.OnePod(ctx, "foo", "sleep")
	check(t, err)
	policy := StrictNamespace("bar")
	check(t, w.Apply(ctx, policy))
	t.Cleanup(func() { check(t, w.Delete(context.Background(), policy)) })
	var (
		outside   = []string{"legacy→bar"}
		legacyRev = mark{"label", "namespace", "legacy", api.LabelRevision + "=canary", api.LabelRevision + "-"}
		legacyOut = mark{"label", "namespace", "legacy", api.LabelInjection + "=disabled", api.LabelInjection + "-"}
		podRev    = mark{"label", "pod/" + legacy.Metadata.Name, "legacy", api.LabelRevision + "=canary", api.LabelRevision + "-"}
		podIn     = mark{"label", "pod/" + legacy.Metadata.Name, "legacy", api.LabelPodInject + "=true", api.LabelPodInject + "-"}
		fooNone   = mark{"label", "pod/" + foo.Metadata.Name, "foo", api.LabelDataplaneMode + "=none", api.LabelDataplaneMode + "-"}
		fooPort   = mark{"annotate", "pod/" + foo.Metadata.Name, "foo", api.AnnotationExcludeOutboundPorts + "=8000", api.AnnotationExcludeOutboundPorts + "-"}
	)
	for _, row := range []struct {
		name             string
		marks            []mark
		refused, control []string // without the last mark
	}{
		{"SI-04 a pod's revision enrols it", []mark{podRev}, nil, outside},
		{"SI-04 a namespace's revision enrols it", []mark{legacyRev}, nil, outside},
		{"SI-05 injection beats revision", []mark{legacyRev, legacyOut}, outside, nil},
		{"SI-05 a disabled namespace beats its pod", []mark{podIn, legacyOut}, outside, nil},
		{"SI-05 a pod that is none beats its namespace", []mark{fooNone}, []string{"legacy→bar", "foo→bar"}, outside},
		{"CN-07 an excluded port bypasses the mesh", []mark{fooPort}, []string{"legacy→bar", "foo→bar"}, outside},
	} {
		id := row.name[:5]
		for i, m := range row.marks {
			if i == len(row.marks)-1 {
				t.Run(id+" control: without it", func(t *testing.T) { check(t, w.ExpectPairs(ctx, 30*time.Second, row.control...)) })
			}
			check(t, w.mark(ctx, m, true))
		}
		t.Run(row.name, func(t *testing.T) { check(t, w.ExpectPairs(ctx, 30*time.Second, row.refused...)) })
		for _, m := range row.marks {
			check(t, w.mark(context.WithoutCancel(ctx), m, false))
		}
	}
	check(t, w.ExpectPairs(ctx, 30*time.Second, outside...))
}

// TestSI06Default turns the default round for a while: legacy, which no label speaks of, is enrolled.
func TestSI06Default(t *testing.T) {
	ctx, w := meshed(t)
	policy := StrictNamespace("bar")
	check(t, w.Apply(ctx, policy))
	t.Cleanup(func() { check(t, w.Delete(context.Background(), policy)) })
	byDefault := func(ctx context.Context, value string) error {
		_, err := w.Undermesh(ctx, "install", "-y", "--set", "profile=demo", "--set", "values.sidecarInjectorWebhook.enableNamespacesByDefault="+value)
		return err
	}
	t.Run("SI-06 control: the default leaves unlabelled pods out", func(t *testing.T) {
		check(t, w.ExpectPairs(ctx, 30*time.Second, "legacy→bar"))
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		check(t, byDefault(ctx, "false"))
		check(t, w.awaitAnnotation(ctx, []string{"legacy"}, ""))
	})
	check(t, byDefault(ctx, "true"))
	t.Run("SI-06 unlabelled pods are enrolled where the administrator says so", func(t *testing.T) {
		check(t, w.ExpectPairs(ctx, time.Minute))
	})
}

func (w *World) mark(ctx context.Context, m mark, set bool) error {
	value := m.unset
	if set {
		value = m.set
	}
	args := []string{m.verb, m.object, value, "--overwrite"}
	if m.object == "namespace" {
		args = []string{m.verb, "namespace", m.namespace, value, "--overwrite"}
	} else {
		args = append(args, "-n", m.namespace)
	}
	_, err := w.Kubectl(ctx, args...)
	return err
}
