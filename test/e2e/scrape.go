package e2e

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/undermesh/undermesh/controller/api"
)

// Series are what a page of metrics says: value by series, as it is written ("name" or "name{label=\"value\"}").
type Series map[string]float64

// Sum adds up all series of a name whose labels have all the texts; found says whether there are any.
func (s Series) Sum(name string, texts ...string) (sum float64, found bool) {
series:
	for text, v := range s {
		if text != name && !strings.HasPrefix(text, name+"{") {
			continue
		}
		for _, t := range texts {
			if !strings.Contains(text, t) {
				continue series
			}
		}
		sum, found = sum+v, true
	}
	return sum, found
}

// Page fetches a page of a pod from a node's own network, which needs no API server. Other statuses than 200 are no error.
func (w *World) Page(ctx context.Context, node, address string) (status int, body string, err error) {
	out, err := w.Cluster(ctx, "node", strings.TrimPrefix(node, "node"), "--", "curl", "-s", "-m", "10", "-w", "\n%{http_code}", "http://"+address)
	if err != nil {
		return 0, "", err
	}
	at := strings.LastIndexByte(out, '\n')
	if at < 0 {
		return 0, "", fmt.Errorf("ask %s: no answer", address)
	}
	status, err = strconv.Atoi(out[at+1:])
	return status, out[:at], err
}

// Scrape reads the metrics of a pod.
func (w *World) Scrape(ctx context.Context, node, address string) (Series, error) {
	status, body, err := w.Page(ctx, node, address)
	if err != nil {
		return nil, err
	}
	if status != 200 {
		return nil, fmt.Errorf("scrape %s: status %d", address, status)
	}
	out := Series{}
	for line := range strings.Lines(body) {
		line = strings.TrimSpace(line)
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || line[0] == '#' {
			continue
		}
		v, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("scrape %s: line %q: %w", address, line, err)
		}
		out[line[:at]] = v
	}
	return out, nil
}

// Controller is the one replica of the control plane.
func (w *World) Controller(ctx context.Context) (*Pod, error) {
	pods, err := w.Pods(ctx, api.DefaultRootNamespace, "app="+api.ControllerName)
	if err != nil {
		return nil, err
	}
	if len(pods) != 1 {
		return nil, fmt.Errorf("there are %d controllers", len(pods))
	}
	return &pods[0], nil
}

// ControllerMetrics scrapes it, as Prometheus does by its annotations.
func (w *World) ControllerMetrics(ctx context.Context, p *Pod) (Series, error) {
	if p.Metadata.Annotations["prometheus.io/port"] != "15014" {
		return nil, errors.New("the annotations of the controller's pod do not lead to its metrics")
	}
	return w.Scrape(ctx, p.Spec.NodeName, p.Status.PodIP+":15014/metrics")
}
