package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/undermesh/undermesh/controller/validate"
)

const analyzeLong = `Look for what is wrong in the configuration of the mesh: that of a cluster, with the files named beside it as if they
were applied; with --use-kube=false the files alone, which then are everything there is.

Each finding is one line:

  SEVERITY [CODE] (KIND NAMESPACE/NAME FILE:LINE) MESSAGE

CODE is that of Istio's analyzers (IST0101, …) where they have one. The objects of one namespace are judged, of all with -A;
what they refer to may be in any. Secrets are listed by name only: their content is not read.

Exit code 0: nothing of the failure threshold was found. Exit code 79: something was. Exit code 1: the analysis failed.`

// issuesFound is the exit code of an analysis that found something, as istioctl has it.
const issuesFound = 79

// exitError is an error with the exit code that it means.
type exitError struct {
	error
	code int
}

// exitCode is 1 unless the error says otherwise.
func exitCode(err error) int {
	var e exitError
	if errors.As(err, &e) {
		return e.code
	}
	return 1
}

// analysis is the flags of analyze.
type analysis struct {
	all, kube, recursive bool
	fail, show           string
	suppress             []string
	timeout              time.Duration
}

// message is one finding as "analyze -o json" prints it.
type message struct {
	Code      string `json:"code"`
	Level     string `json:"level"`
	Message   string `json:"message"`
	Origin    string `json:"origin"`
	Field     string `json:"field,omitempty"`
	Hint      string `json:"hint,omitempty"`
	Reference string `json:"reference,omitempty"` // FILE:LINE
}

func (f *frame) analyzeCommand() *cobra.Command {
	a := analysis{}
	cmd := &cobra.Command{
		Use:     "analyze [FILE|DIR|-]...",
		Short:   "Look for what is wrong in the configuration of a cluster or of files",
		Long:    analyzeLong,
		Example: "  undermesh analyze\n  undermesh analyze -A\n  undermesh analyze shop.yaml\n  undermesh analyze --use-kube=false manifests/",
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.analyze(cmd.Context(), a, args)
		},
	}
	p := cmd.Flags()
	p.BoolVarP(&a.all, "all-namespaces", "A", false, "judge the objects of all namespaces but those of Kubernetes itself")
	p.BoolVarP(&a.kube, "use-kube", "k", true, "judge the objects of the cluster; =false: of the files alone")
	p.BoolVarP(&a.recursive, "recursive", "R", false, "read directories with what is below them")
	p.StringVar(&a.fail, "failure-threshold", "Error", "lowest severity that makes the exit code 79: Info, Warning or Error")
	p.StringVar(&a.show, "output-threshold", "Info", "lowest severity that is printed: Info, Warning or Error")
	p.StringSliceVarP(&a.suppress, "suppress", "S", nil, "`CODE=KIND NAME.NAMESPACE` not to be told, where KIND NAME.NAMESPACE may have *; may be repeated")
	p.DurationVar(&a.timeout, "timeout", 30*time.Second, "how long the cluster may take")
	f.outputFlag(cmd)
	return cmd
}

// severityOf reads a threshold.
func severityOf(flag, text string) (validate.Severity, error) {
	for _, s := range []validate.Severity{validate.Info, validate.Warning, validate.Error} {
		if strings.EqualFold(s.String(), text) {
			return s, nil
		}
	}
	return 0, fmt.Errorf("flag --%s: %q is not a severity (have Info, Warning, Error)", flag, text)
}

func (f *frame) analyze(ctx context.Context, a analysis, args []string) error {
	fail, err := severityOf("failure-threshold", a.fail)
	if err != nil {
		return err
	}
	show, err := severityOf("output-threshold", a.show)
	if err != nil {
		return err
	}
	for _, s := range a.suppress {
		if code, object, found := strings.Cut(s, "="); !found || code == "" || object == "" {
			return fmt.Errorf("flag --suppress: %q is not CODE=KIND NAME.NAMESPACE", s)
		}
	}
	if !a.kube && len(args) == 0 {
		return errors.New("name files, or use the cluster (--use-kube)")
	}
	paths, err := analyzed(args, a.recursive)
	if err != nil {
		return err
	}
	var c *cluster
	if a.kube {
		if c, err = f.connect(); err != nil {
			return err
		}
	}
	found, target, unfinished := f.findings(ctx, a, c, paths)
	if unfinished != nil && (len(found) == 0 || ctx.Err() != nil) {
		return unfinished
	}
	found = slices.DeleteFunc(found, func(x validate.Finding) bool { return x.Severity < show })
	if err := f.analyzed(found, target, fail); unfinished == nil {
		return err
	}
	return unfinished
}

// findings judges the objects of the cluster, if there is one, and the files. target says what was judged. What was found until
// an error is returned with it.
func (f *frame) findings(ctx context.Context, a analysis, c *cluster, paths []string) (found []validate.Finding, target string, err error) {
	catalogue, err := validate.NewCatalogue()
	if err != nil {
		return nil, "", err
	}
	cfg := validate.SetConfig{All: true, RootNamespace: f.istioNamespace, Namespace: f.namespace}
	var objects [][]byte
	target = strings.Join(paths, ", ")
	if c != nil {
		cfg.Namespace = cmp.Or(f.namespace, c.home, "default")
		target = "namespace: " + cfg.Namespace
		if a.all {
			target = "all namespaces"
		}
		listing, cancel := context.WithTimeout(ctx, a.timeout)
		defer cancel()
		if objects, cfg.Unread, err = c.configuration(listing, f.istioNamespace); err != nil {
			return nil, "", err
		}
		for _, kind := range cfg.Unread {
			fmt.Fprintf(f.err, "not checked: what refers to a %s, which may not be listed\n", kind)
		}
	}
	set := catalogue.NewSet(cfg)
	for _, o := range objects {
		found = append(found, set.File(ctx, "", o).Findings...)
	}
	for _, path := range paths {
		data, err := f.readManifest(path)
		if err != nil {
			return nil, "", err
		}
		found = append(found, set.File(ctx, path, data).Findings...)
	}
	together, err := set.Together(ctx)
	found = append(found, together...)
	return slices.DeleteFunc(found, func(x validate.Finding) bool {
		return x.Skipped || a.suppressed(x) || (x.File == "" && !a.judged(x, cfg.Namespace))
	}), target, err
}

// judged says whether a finding about an object of the cluster is asked for.
func (a analysis) judged(x validate.Finding, namespace string) bool {
	ns := x.Namespace
	if x.Kind == "Namespace" {
		ns = x.Name
	}
	if a.all {
		return !slices.Contains([]string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}, ns)
	}
	return ns == namespace
}

// suppressed says whether a finding is not to be told.
func (a analysis) suppressed(x validate.Finding) bool {
	return slices.ContainsFunc(a.suppress, func(s string) bool {
		code, object, _ := strings.Cut(s, "=")
		match, err := filepath.Match(object, x.Kind+" "+x.Name+"."+x.Namespace)
		return err == nil && match && code == x.CodeOf()
	})
}

// analyzed prints what was found. It returns an error when something of the severity fail was.
func (f *frame) analyzed(found []validate.Finding, target string, fail validate.Severity) error {
	slices.SortStableFunc(found, func(a, b validate.Finding) int { return int(b.Severity) - int(a.Severity) })
	messages := []message{}
	bad := false
	for _, x := range found {
		bad = bad || x.Severity >= fail
		messages = append(messages, messageOf(x))
	}
	switch {
	case f.output != "":
		if err := f.print(messages, nil); err != nil {
			return err
		}
	case len(messages) == 0:
		fmt.Fprintf(f.out, "✓ No validation issues found when analyzing %s.\n", target)
	}
	for _, m := range messages {
		if f.output == "" {
			fmt.Fprintln(f.out, m)
		}
	}
	if bad {
		return exitError{fmt.Errorf("analyzers found issues when analyzing %s", target), issuesFound}
	}
	return nil
}

func messageOf(x validate.Finding) message {
	level := x.Severity.String()
	name := x.Name
	if x.Namespace != "" {
		name = x.Namespace + "/" + name
	}
	m := message{Code: x.CodeOf(), Level: strings.ToUpper(level[:1]) + level[1:], Message: x.Message, Origin: strings.TrimSpace(x.Kind + " " + name),
		Field: x.Field, Hint: x.Hint}
	switch {
	case x.Field == "":
	case m.Code == validate.CodeSchema:
		m.Message = "Schema validation error: " + x.Field + ": " + x.Message
	case m.Code == validate.CodeWarning || m.Code == validate.CodeDeprecated || m.Code == validate.CodeAnnotation:
		m.Message = x.Field + ": " + x.Message
	}
	if x.File != "" {
		m.Reference = fmt.Sprintf("%s:%d", x.File, x.Line)
	}
	return m
}

// String is SEVERITY [CODE] (KIND NS/NAME FILE:LINE) MESSAGE (FIELD; HINT).
func (m message) String() string {
	text := fmt.Sprintf("%s [%s] (%s", m.Level, m.Code, m.Origin)
	if m.Reference != "" {
		text += " " + m.Reference
	}
	text += ") " + m.Message
	var more []string
	if m.Field != "" && !strings.Contains(m.Message, m.Field) {
		more = append(more, m.Field)
	}
	if m.Hint != "" {
		more = append(more, m.Hint)
	}
	if len(more) > 0 {
		text += " (" + strings.Join(more, "; ") + ")"
	}
	return text
}

// analyzed resolves directories to the manifests in them, with recursive also to those below.
func analyzed(names []string, recursive bool) ([]string, error) {
	var out []string
	for _, name := range names {
		info, err := os.Stat(name)
		if name == "-" || (err == nil && !info.IsDir()) || (err == nil && recursive) {
			more, err := manifests([]string{name})
			if err != nil {
				return nil, err
			}
			out = append(out, more...)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		entries, err := fs.ReadDir(os.DirFS(name), ".")
		if err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		before := len(out)
		for _, e := range entries {
			if !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, strings.ToLower(filepath.Ext(e.Name()))) {
				out = append(out, filepath.Join(name, e.Name()))
			}
		}
		if len(out) == before {
			return nil, fmt.Errorf("read manifests: %s holds no .yaml, .yml or .json (use -R for those below)", name)
		}
	}
	return out, nil
}

// stripped removes what no finding can be about, so that large clusters are read fast.
func stripped(object map[string]any) ([]byte, error) {
	if meta, ok := object["metadata"].(map[string]any); ok {
		delete(meta, "managedFields")
		if notes, ok := meta["annotations"].(map[string]any); ok {
			delete(notes, "kubectl.kubernetes.io/last-applied-configuration")
		}
	}
	if status, ok := object["status"].(map[string]any); ok {
		object["status"] = map[string]any{"phase": status["phase"]}
		if status["phase"] == nil {
			delete(object, "status")
		}
	}
	return json.Marshal(object)
}
