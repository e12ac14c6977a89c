package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/undermesh/undermesh/controller/validate"
)

const validateLong = `Check objects in files before they are applied, without a cluster: the kinds of Istio, of the Gateway API and of
Kubernetes. Unknown fields, wrong types, missing fields, values out of range, names that are no names, objects of removed
kinds, and fragments are found.

Each finding is one line on the standard output:

  FILE:LINE: SEVERITY KIND NAMESPACE/NAME FIELD: MESSAGE (HINT)

SEVERITY is error (cannot be done as written), warning (works, but perhaps not as meant) or info. Objects of kinds that this
program does not know are counted and named as "not checked". What the files refer to and do not hold is an info, as it may
be somewhere else; with --all-objects it is an error. The last line, on the standard error, is the sum.

Exit code 0: no error was found (with --fail-on=warning: no warning either). Exit code 1: something was found, or a file
could not be read.`

// checked is what "undermesh validate -o json" prints.
type checked struct {
	Files      int             `json:"files"`
	Objects    int             `json:"objects"`
	Findings   []checkedObject `json:"findings"`
	NotChecked []string        `json:"notChecked"` // FILE:LINE: KIND NS/NAME (APIVERSION)
}

type checkedObject struct {
	File      string `json:"file"`
	Line      int    `json:"line"`
	Severity  string `json:"severity"`
	Code      string `json:"code"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Field     string `json:"field,omitempty"`
	Message   string `json:"message"`
	Hint      string `json:"hint,omitempty"`
}

func (f *frame) validateCommand() *cobra.Command {
	var files []string
	var failOn string
	var all bool
	cmd := &cobra.Command{
		Use:     "validate -f FILE|DIR|-",
		Aliases: []string{"v"},
		Short:   "Check objects in files before they are applied",
		Long:    validateLong,
		Example: "  undermesh validate -f bookinfo.yaml\n  undermesh validate -f manifests/ --fail-on=warning\n  kubectl get vs -A -o yaml | undermesh validate -f -",
		RunE: func(cmd *cobra.Command, args []string) error {
			limit := validate.Error
			switch failOn {
			case "error":
			case "warning":
				limit = validate.Warning
			default:
				return fmt.Errorf("flag --fail-on: %q is not a severity (have error, warning)", failOn)
			}
			files = append(files, args...)
			if len(files) == 0 {
				return fmt.Errorf("flag -f: name a file, a directory or -")
			}
			return f.validate(cmd.Context(), files, limit, all)
		},
	}
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "file, directory (its *.yaml, *.yml and *.json, also below) or - for the standard input; may be repeated")
	cmd.Flags().StringVar(&failOn, "fail-on", "error", "lowest severity that makes the exit code 1: error or warning")
	cmd.Flags().BoolVar(&all, "all-objects", false, "the files hold every object there is: what they refer to and do not hold is an error, not an info")
	f.outputFlag(cmd)
	return cmd
}

// validate checks files and prints what was found. It returns an error when something of the severity limit was, and when the
// context ended before that.
func (f *frame) validate(ctx context.Context, names []string, limit validate.Severity, all bool) error {
	if !slices.Contains([]string{"", "json", "yaml"}, f.output) {
		return fmt.Errorf("flag -o: %q is not a format (have json, yaml)", f.output)
	}
	catalogue, err := validate.NewCatalogue()
	if err != nil {
		return err
	}
	paths, err := manifests(names)
	if err != nil {
		return err
	}
	sum := checked{Findings: []checkedObject{}, NotChecked: []string{}}
	set := catalogue.NewSet(validate.SetConfig{All: all, RootNamespace: f.istioNamespace})
	var found []validate.Finding
	order := map[string]int{}
	for i, path := range paths {
		data, err := f.readManifest(path)
		if err != nil {
			return err
		}
		report := set.File(ctx, path, data)
		order[path] = i
		sum.Files++
		sum.Objects += report.Objects
		sum.NotChecked = append(sum.NotChecked, report.NotChecked...)
		found = append(found, report.Findings...)
	}
	together, unfinished := set.Together(ctx)
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("validate files: %w", err)
	}
	found = append(found, together...)
	slices.SortStableFunc(found, func(a, b validate.Finding) int { return cmp.Or(order[a.File]-order[b.File], a.Line-b.Line) })
	count := map[validate.Severity]int{}
	for _, x := range found {
		count[x.Severity]++
		sum.Findings = append(sum.Findings, checkedObject{x.File, x.Line, x.Severity.String(), x.CodeOf(), x.Kind, x.Namespace, x.Name, x.Field, x.Message, x.Hint})
		if f.output == "" {
			fmt.Fprintln(f.out, x.String())
		}
	}
	if f.output != "" {
		if err := f.print(sum, nil); err != nil {
			return err
		}
	}
	fmt.Fprintf(f.err, "%d files, %d objects: %d errors, %d warnings, %d infos, %d objects not checked\n", sum.Files, sum.Objects,
		count[validate.Error], count[validate.Warning], count[validate.Info], len(sum.NotChecked))
	if unfinished != nil {
		return unfinished
	}
	if sum.Objects == 0 && len(found) == 0 {
		return fmt.Errorf("no objects in %s", strings.Join(names, ", "))
	}
	bad := 0
	for severity, n := range count {
		if severity >= limit {
			bad += n
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d findings of severity %s or worse", bad, limit)
	}
	return nil
}

// readManifest reads a file, or the standard input for "-". One byte more than is allowed is enough to see that it is too large.
func (f *frame) readManifest(path string) ([]byte, error) {
	in := f.in
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("read manifest: %w", err)
		}
		defer file.Close()
		in = file
	}
	data, err := io.ReadAll(io.LimitReader(in, validate.MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", path, err)
	}
	return data, nil
}

// manifests resolves directories to the manifests below them, in order. A directory without any is an error.
func manifests(names []string) ([]string, error) {
	var out []string
	for _, name := range names {
		if name == "-" {
			out = append(out, name)
			continue
		}
		before := len(out)
		err := filepath.WalkDir(name, func(path string, e fs.DirEntry, err error) error {
			ext := strings.ToLower(filepath.Ext(path))
			if err != nil || e.IsDir() || (path != name && !slices.Contains([]string{".yaml", ".yml", ".json"}, ext)) {
				return err
			}
			out = append(out, path)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		if len(out) == before {
			return nil, fmt.Errorf("read manifests: %s holds no .yaml, .yml or .json", name)
		}
	}
	return out, nil
}
