package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/api"
)

// logLevels are what ztunnel can log at, the most first.
var logLevels = []string{"debug", "info", "warning", "error"}

// maxLevel is how many bytes the answer about a level may have.
const maxLevel = 4 << 10

// levelShown is what one ztunnel logs at.
type levelShown struct {
	Pod   string `json:"pod"`
	Node  string `json:"node"`
	Level string `json:"level"`
}

// proxyConfigLogCommand shows and sets what ztunnels log at. A level that was set lasts until the ztunnel starts anew.
func (f *frame) proxyConfigLogCommand() *cobra.Command {
	var level string
	var reset bool
	cmd := &cobra.Command{
		Use:     "log [POD[.NAMESPACE]]",
		Aliases: []string{"o"},
		Short:   "Show or set the log level of the ztunnel of a pod's node, or of all",
		Example: "  undermesh proxy-config log\n  undermesh proxy-config log sleep-7dd87cc47d-abcde.foo --level debug\n  undermesh proxy-config log --reset",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := askedLevel(level, reset)
			if err != nil {
				return err
			}
			return f.proxyConfigLog(cmd.Context(), args, to)
		},
	}
	cmd.Flags().StringVar(&level, "level", "", "the level to set: "+strings.Join(logLevels, ", "))
	cmd.Flags().BoolVarP(&reset, "reset", "r", false, "set the default, info")
	f.viewOutput(cmd)
	return cmd
}

// askedLevel is the level that the flags set, as ztunnel names it; "" sets none.
func askedLevel(level string, reset bool) (string, error) {
	switch {
	case reset && level != "":
		return "", errors.New("flag --reset: excludes --level")
	case reset:
		return "info", nil
	case level == "":
		return "", nil
	case !slices.Contains(logLevels, strings.ToLower(level)) && !strings.EqualFold(level, "warn"):
		return "", fmt.Errorf("flag --level: %q is not a level (have %s)", level, strings.Join(logLevels, ", "))
	}
	return strings.TrimSuffix(strings.ToLower(level), "ing"), nil
}

func (f *frame) proxyConfigLog(ctx context.Context, args []string, level string) error {
	c, err := f.connect()
	if err != nil {
		return err
	}
	node := ""
	if len(args) > 0 {
		pod, err := c.podOf(ctx, args[0], f.namespace)
		if err != nil {
			return err
		}
		node = pod.Spec.NodeName
	}
	pods, err := c.ztunnels(ctx, f.istioNamespace, node)
	if err != nil {
		return err
	}
	var all []levelShown
	var failed []error
	for i := range pods {
		shown, err := c.logLevel(ctx, &pods[i], level)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		all = append(all, shown)
	}
	if len(all) > 0 {
		if err := f.print(all, levelRows(all)); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

// logLevel asks a ztunnel for its level, after it was set unless level is "".
func (c *cluster) logLevel(ctx context.Context, pod *corev1.Pod, level string) (levelShown, error) {
	method, path := http.MethodGet, "/logging"
	if level != "" {
		method, path = http.MethodPost, path+"?"+url.Values{"level": {level}}.Encode()
	}
	raw, err := c.call(ctx, method, pod.Namespace, pod.Name, api.PortAdmin, path, maxLevel)
	if err != nil {
		return levelShown{}, err
	}
	now, ok := strings.CutPrefix(strings.TrimSpace(string(raw)), "level: ")
	if !ok {
		return levelShown{}, fmt.Errorf("read answer of pod %s/%s: %q is not a level", pod.Namespace, pod.Name, raw)
	}
	return levelShown{pod.Name + "." + pod.Namespace, pod.Spec.NodeName, now}, nil
}

func levelRows(all []levelShown) [][]string {
	rows := make([][]string, 0, len(all))
	for _, l := range all {
		rows = append(rows, []string{l.Pod, l.Node, l.Level})
	}
	return titled([]string{"ZTUNNEL", "NODE", "LEVEL"}, rows)
}
