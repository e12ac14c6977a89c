package configdir

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

// Overlay is what one writer says about an object of the directory.
type Overlay struct {
	APIVersion  string             // of the object, for example v1
	Key         Key                // Group must be that of APIVersion
	Annotations map[string]*string // nil removes the annotation
	Labels      map[string]*string // nil removes the label
	Status      map[string]any     // merged into status as a JSON merge patch; may be nil
}

func overlayPath(dir, writer string, k Key) string {
	parts := []string{strings.ToLower(k.Kind), k.Group, k.Namespace, k.Name, writer}
	return filepath.Join(dir, StatusDir, strings.Join(parts, "_")+".yaml")
}

// WriteOverlay lays the overlay over its object; it replaces what the same writer wrote before. The file appears whole
// or not at all. Writers are told apart by name, which must be usable in a file name.
func WriteOverlay(dir, writer string, o Overlay) error {
	gv, err := schema.ParseGroupVersion(o.APIVersion)
	if err != nil || gv.Group != o.Key.Group || writer == "" || strings.ContainsAny(writer, "/\\ ") {
		return fmt.Errorf("write overlay of %s: API version %q or writer %q does not fit", o.Key, o.APIVersion, writer)
	}
	meta := map[string]any{"name": o.Key.Name}
	if o.Key.Namespace != "" {
		meta["namespace"] = o.Key.Namespace
	}
	for field, values := range map[string]map[string]*string{"annotations": o.Annotations, "labels": o.Labels} {
		if len(values) > 0 {
			meta[field] = values
		}
	}
	doc := map[string]any{"apiVersion": o.APIVersion, "kind": o.Key.Kind, "metadata": meta}
	if o.Status != nil {
		doc["status"] = o.Status
	}
	data, err := yaml.Marshal(doc)
	if err != nil {
		return fmt.Errorf("write overlay of %s: %w", o.Key, err)
	}
	return writeAtomic(overlayPath(dir, writer, o.Key), data)
}

// RemoveOverlay removes what the writer wrote about the object; that there is nothing is no error.
func RemoveOverlay(dir, writer string, k Key) error {
	err := os.Remove(overlayPath(dir, writer, k))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove overlay of %s: %w", k, err)
	}
	return nil
}

func writeAtomic(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write file %s: %w", path, err)
	}
	if old, err := os.ReadFile(path); err == nil && string(old) == string(data) {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return fmt.Errorf("write file %s: %w", path, err)
	}
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(0o644)
	}
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write file %s: %w", path, errors.Join(err, os.Remove(tmp.Name())))
	}
	return nil
}

// checkOverlay refuses what an overlay may not change.
func checkOverlay(raw map[string]any) error {
	for name := range raw {
		if name != "apiVersion" && name != "kind" && name != "metadata" && name != "status" {
			return &fieldError{name, "an overlay may not hold this field"}
		}
	}
	meta, _ := raw["metadata"].(map[string]any)
	for name, value := range meta {
		if name == "name" || name == "namespace" {
			continue
		}
		values, ok := value.(map[string]any)
		if !ok || (name != "annotations" && name != "labels") {
			return &fieldError{"metadata." + name, "an overlay may not hold this field"}
		}
		for k, v := range values {
			if _, isText := v.(string); v != nil && !isText {
				return &fieldError{"metadata." + name + "." + k, "is not a string"}
			}
		}
	}
	return nil
}

// mergeDocuments lays the overlays over the base. Overlays that make the object undecodable leave it as it was before
// them (old), or else as the base has it.
func mergeDocuments(base *document, overlays []*document, old *merged) *merged {
	m := &merged{base: base, overlays: overlays, entry: base.entry}
	if len(overlays) == 0 {
		return m
	}
	raw := base.raw
	for _, o := range overlays {
		patch := maps.Clone(o.raw)
		delete(patch, "apiVersion")
		delete(patch, "kind")
		raw = mergePatch(raw, patch)
	}
	entry, err := decodeMap(raw, false)
	if err == nil {
		m.entry = entry
		return m
	}
	if old != nil && old.base == base {
		m.entry = old.entry
	}
	p := problemOf(overlays[len(overlays)-1], err)
	m.problem = &p
	return m
}

// mergePatch applies a JSON merge patch (RFC 7396) without changing its arguments.
func mergePatch(target, patch map[string]any) map[string]any {
	out := maps.Clone(target)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range patch {
		if v == nil {
			delete(out, k)
			continue
		}
		if p, ok := v.(map[string]any); ok {
			t, _ := out[k].(map[string]any)
			out[k] = mergePatch(t, p)
			continue
		}
		out[k] = v
	}
	return out
}
