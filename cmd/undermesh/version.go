package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/version"
)

// versions is what "undermesh version" prints.
type versions struct {
	Client       string            `json:"clientVersion"`
	Commit       string            `json:"commit,omitempty"`
	ControlPlane map[string]string `json:"controlPlaneVersion,omitempty"` // pod → version
	DataPlane    map[string]int    `json:"dataPlaneVersion,omitempty"`    // version → node proxies
	NotSeen      []string          `json:"notSeen,omitempty"`             // what the user may not look at
}

func (f *frame) versionCommand() *cobra.Command {
	var remote bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this program, the controller and the node proxies",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Client: version.Version, Commit: version.Commit}
			var lookErr error
			if remote {
				lookErr = f.remoteVersions(cmd.Context(), &v)
			}
			if apierrors.IsForbidden(lookErr) {
				v.NotSeen, lookErr = append(v.NotSeen, "control plane and data plane: "+lookErr.Error()), nil
			}
			rows := [][]string{{"client version:", v.Client}}
			for pod, ver := range v.ControlPlane {
				rows = append(rows, []string{"control plane version:", ver, "(" + pod + ")"})
			}
			for ver, n := range v.DataPlane {
				rows = append(rows, []string{"data plane version:", ver, fmt.Sprintf("(%d node proxies)", n)})
			}
			for _, what := range v.NotSeen {
				rows = append(rows, []string{"not seen:", what})
			}
			if err := f.print(v, rows); err != nil {
				return err
			}
			return lookErr
		},
	}
	cmd.Flags().BoolVar(&remote, "remote", true, "ask the cluster too")
	f.outputFlag(cmd)
	return cmd
}

// remoteVersions reads the image tags of the running pods. A cluster without the mesh is no error.
func (f *frame) remoteVersions(ctx context.Context, v *versions) error {
	c, err := f.connect()
	if err != nil {
		return err
	}
	pods, err := c.kube.CoreV1().Pods(f.istioNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list pods of namespace %s: %w", f.istioNamespace, err)
	}
	v.ControlPlane, v.DataPlane = map[string]string{}, map[string]int{}
	for i := range pods.Items {
		p := &pods.Items[i]
		if len(p.Spec.Containers) == 0 {
			continue
		}
		image := p.Spec.Containers[0].Image
		tag := image[strings.LastIndex(image, ":")+1:]
		switch p.Labels["app"] {
		case api.ControllerName:
			v.ControlPlane[p.Name] = tag
		case api.ZtunnelName:
			v.DataPlane[tag]++
		}
	}
	return nil
}
