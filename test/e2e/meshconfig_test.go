package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// meshText reads the mesh configuration.
func (w *World) meshText(ctx context.Context) (string, error) {
	return w.Kubectl(ctx, "get", "configmap", "-n", api.DefaultRootNamespace, api.MeshConfigMap, "-o", "jsonpath={.data.mesh}")
}

// SetMesh writes the mesh configuration.
func (w *World) SetMesh(ctx context.Context, text string) error {
	patch, err := json.Marshal(map[string]any{"data": map[string]string{"mesh": text}})
	if err != nil {
		return err
	}
	_, err = w.Kubectl(ctx, "patch", "configmap", "-n", api.DefaultRootNamespace, api.MeshConfigMap, "--type", "merge", "-p", string(patch))
	return err
}

// restoreMesh puts back what the mesh configuration is now, when the test ends.
func restoreMesh(ctx context.Context, t *testing.T, w *World) (was string) {
	t.Helper()
	was, err := w.meshText(ctx)
	check(t, err)
	t.Cleanup(func() { check(t, w.SetMesh(context.Background(), was)) })
	return was
}

// controlPlane is what a live change must not restart.
func (w *World) controlPlane(ctx context.Context) (string, error) {
	var all []string
	for _, app := range []string{api.ControllerName, "ztunnel"} {
		pods, err := w.Pods(ctx, api.DefaultRootNamespace, "app="+app)
		if err != nil {
			return "", err
		}
		for _, p := range pods {
			restarts := 0
			for _, c := range p.Status.ContainerStatuses {
				restarts += c.RestartCount
			}
			all = append(all, fmt.Sprint(p.Metadata.UID, " ", restarts))
		}
	}
	return strings.Join(all, ", "), nil
}

// unknownHost asks kubelet of the other node, an address that is in no registry, and returns curl's exit code.
func (w *World) unknownHost(ctx context.Context, from string) (code string, err error) {
	addr, err := w.Kubectl(ctx, "get", "node", "node2", "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
	if err != nil {
		return "", err
	}
	r, err := w.Exec(ctx, from, "sleep", "curl -sk -o /dev/null -m 10 https://"+addr+":10250/healthz; echo $?")
	return strings.TrimSpace(r.Out), err
}

func (w *World) awaitUnknownHost(ctx context.Context, from, want string) error {
	return Until(ctx, 20*time.Second, "curl's exit code "+want+" from "+from, func(ctx context.Context) error {
		got, err := w.unknownHost(ctx, from)
		if err == nil && got != want {
			err = fmt.Errorf("it is %s", got)
		}
		return err
	})
}

// metric reads a metric of the controller without labels.
func (w *World) metric(ctx context.Context, name string) (string, error) {
	pods, err := w.Pods(ctx, api.DefaultRootNamespace, "app="+api.ControllerName)
	if err != nil {
		return "", err
	}
	for _, p := range pods {
		r, err := w.Exec(ctx, "legacy", "sleep", fmt.Sprintf("curl -s -m 5 http://%s:15014/metrics", p.Status.PodIP))
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(r.Out) {
			if value, ok := strings.CutPrefix(line, name+" "); ok {
				return strings.TrimSpace(value), nil
			}
		}
	}
	return "", fmt.Errorf("no controller has the metric %s", name)
}

// TestIN28MeshConfigLive changes the mesh configuration under a load: what it says counts at once, nothing restarts (IN-29)
// and no connection breaks.
func TestIN28MeshConfigLive(t *testing.T) {
	ctx, w := underLoad(t, true)
	was := restoreMesh(ctx, t, w)
	before, err := w.controlPlane(ctx)
	check(t, err)
	t.Run("IN-28 EG-02 control: without the resource", func(t *testing.T) { check(t, w.awaitUnknownHost(ctx, "foo", "0")) })
	t.Run("IN-28 EG-02 REGISTRY_ONLY refuses an address that is in no registry", func(t *testing.T) {
		since := time.Now().UTC().Truncate(time.Second).Format(time.RFC3339)
		check(t, w.SetMesh(ctx, "accessLogFile: /dev/stdout\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n"))
		check(t, w.awaitUnknownHost(ctx, "foo", "35"))
		check(t, w.ExpectLog(ctx, since, `"reason":"outbound_blocked"`, ":10250"))
		check(t, w.ExpectPairs(ctx, 20*time.Second))
	})
	t.Run("IN-28 EG-02 control: outside the mesh", func(t *testing.T) { check(t, w.awaitUnknownHost(ctx, "legacy", "0")) })
	t.Run("IN-28 a bad configuration changes nothing and is named", func(t *testing.T) {
		withoutAdmission(ctx, t, w) // it refuses it before it is stored
		check(t, w.SetMesh(ctx, "outboundTrafficPolicy: {mode: NOPE}\n"))
		check(t, Until(ctx, 20*time.Second, "undermesh_mesh_config_held 1", func(ctx context.Context) error {
			got, err := w.metric(ctx, "undermesh_mesh_config_held")
			if err == nil && got != "1" {
				err = errors.New("it is " + got)
			}
			return err
		}))
		check(t, w.awaitUnknownHost(ctx, "foo", "35"))
	})
	t.Run("IN-28 IN-29 back, without a restart", func(t *testing.T) {
		check(t, w.SetMesh(ctx, was))
		check(t, w.awaitUnknownHost(ctx, "foo", "0"))
		after, err := w.controlPlane(ctx)
		check(t, err)
		if after != before {
			t.Errorf("the pods were %s and are %s", before, after)
		}
	})
	t.Run("IN-29 control: the documents' restart works too, and is seen", func(t *testing.T) {
		out, err := w.Kubectl(ctx, "rollout", "restart", "-n", api.DefaultRootNamespace, "deployment/istiod")
		check(t, err)
		if strings.TrimSpace(out) != "deployment.apps/istiod restarted" {
			t.Errorf("kubectl says %q", out)
		}
		_, err = w.Kubectl(ctx, "rollout", "status", "-n", api.DefaultRootNamespace, "deployment/istiod", "--timeout=60s")
		check(t, err)
		if after, err := w.controlPlane(ctx); err != nil || after == before {
			t.Errorf("the pods are %s, %v", after, err)
		}
	})
	reports, err := w.Reports(ctx)
	check(t, err)
	check(t, Unharmed(reports))
}

// accessLine asks httpbin.bar from foo and reports whether the mesh logged it, and in which form: "json", "text" or "".
func (w *World) accessLine(ctx context.Context) (string, error) {
	since := time.Now().UTC().Truncate(time.Second).Format(time.RFC3339)
	marker := fmt.Sprintf("/status/200?%d", time.Now().UnixNano())
	src, err := w.Exec(ctx, "foo", "sleep", "curl -s -o /dev/null -m 10 -w '%{local_port}' http://httpbin.bar:8000"+marker)
	if err != nil {
		return "", err
	}
	port := ":" + strings.TrimSpace(src.Out)
	var form string
	err = Until(ctx, 4*time.Second, "a line", func(ctx context.Context) error {
		out, err := w.Kubectl(ctx, "logs", "-n", api.DefaultRootNamespace, "-l", "app=ztunnel", "--tail=-1", "--since-time="+since)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			switch {
			case strings.Contains(line, port+`"`) && strings.Contains(line, `"msg":"request complete"`):
				form = "json"
			case strings.Contains(line, port+" ") && strings.Contains(line, `msg="request complete"`):
				form = "text"
			}
		}
		if form == "" {
			return errStill
		}
		return nil
	})
	if errors.Is(err, errStill) {
		err = nil
	}
	return form, err
}

var errStill = errors.New("there is none")

// TestAccessLogLive: file and encoding of the access log count from the next line on; what was refused is always logged.
func TestAccessLogLive(t *testing.T) {
	ctx, w := meshed(t)
	restoreMesh(ctx, t, w)
	for _, s := range []struct{ title, mesh, want string }{
		{"AL-01 accessLogFile writes a line", "accessLogFile: /dev/stdout\n", "json"},
		{"AL-07 TEXT", "accessLogFile: /dev/stdout\naccessLogEncoding: TEXT\n", "text"},
		{"AL-07 JSON", "accessLogFile: /dev/stdout\naccessLogEncoding: JSON\n", "json"},
		{"AL-07 control: without an encoding", "accessLogFile: /dev/stdout\n", "json"},
		{"AL-01 AL-07 control: without the resource", "{}\n", ""},
		{"AL-09 control: with a file", "accessLogFile: /dev/stdout\n", "json"},
		{"AL-09 an empty file is no line", "accessLogFile: \"\"\n", ""},
	} {
		t.Run(s.title, func(t *testing.T) {
			check(t, w.SetMesh(ctx, s.mesh))
			check(t, Until(ctx, 30*time.Second, s.title, func(ctx context.Context) error {
				got, err := w.accessLine(ctx)
				if err == nil && got != s.want {
					err = fmt.Errorf("the line is %q, want %q", got, s.want)
				}
				return err
			}))
		})
	}
	t.Run("AL-09 a refusal is logged all the same", func(t *testing.T) {
		check(t, w.Apply(ctx, StrictNamespace("foo")))
		t.Cleanup(func() { check(t, w.Delete(context.Background(), StrictNamespace("foo"))) })
		since := time.Now().UTC().Truncate(time.Second).Format(time.RFC3339)
		check(t, w.ExpectPairs(ctx, 30*time.Second, "legacy→foo"))
		check(t, w.ExpectLog(ctx, since, `"reason":"strict_mtls"`))
	})
	check(t, w.SetMesh(ctx, "accessLogFile: /dev/stdout\naccessLogEncoding: TEXT\n"))
	t.Run("AL-01 AL-07 control: outside the mesh", func(t *testing.T) {
		check(t, w.Unenrol(ctx, Meshed...))
		t.Cleanup(func() { check(t, w.Enrol(context.Background(), Meshed...)) })
		check(t, Until(ctx, 30*time.Second, "no line", func(ctx context.Context) error { // capture ends a moment after the annotation
			got, err := w.accessLine(ctx)
			if err == nil && got != "" {
				err = fmt.Errorf("a connection outside the mesh is logged as %s", got)
			}
			return err
		}))
	})
}
