package jwks

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Label marks the ConfigMaps that hold records; its value is "true".
const Label = "undermesh.io/jwks"

// prefix of the names of these ConfigMaps.
const prefix = "istio-jwks-"

// Keys of their data.
const (
	fieldSource  = "source"
	fieldKeys    = "jwks"
	fieldFetched = "fetched"
	fieldError   = "error"
)

// IsRecord reports whether a ConfigMap of this name holds a record.
func IsRecord(name string) bool { return strings.HasPrefix(name, prefix) }

// ObjectName is the name of the ConfigMap of a source.
func ObjectName(source string) string { return prefix + Name(source) }

// Encode is the ConfigMap of a record.
func Encode(r Record, namespace string) *corev1.ConfigMap {
	cm := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: ObjectName(r.Source),
			Labels: map[string]string{Label: "true", "app.kubernetes.io/part-of": "undermesh"}},
		Data: map[string]string{fieldSource: r.Source},
	}
	if r.Keys != "" {
		cm.Data[fieldKeys], cm.Data[fieldFetched] = r.Keys, r.Fetched.UTC().Format(time.RFC3339)
	}
	if r.Error != "" {
		cm.Data[fieldError] = r.Error
	}
	return cm
}

// Decode reads a record back. It returns an error when the ConfigMap is not what Encode makes: keys of one source must
// never count for another.
func Decode(cm *corev1.ConfigMap) (Record, error) {
	r := Record{Source: cm.Data[fieldSource], Error: cm.Data[fieldError]}
	if cm.Name != prefix+Name(r.Source) {
		return Record{}, fmt.Errorf("data.%s: does not belong to the name", fieldSource)
	}
	if text := cm.Data[fieldKeys]; text != "" {
		keys, err := ParseKeys([]byte(text))
		if err != nil {
			return Record{}, fmt.Errorf("data.%s: %w", fieldKeys, err)
		}
		fetched, err := time.Parse(time.RFC3339, cm.Data[fieldFetched])
		if err != nil {
			return Record{}, fmt.Errorf("data.%s: is not a time", fieldFetched)
		}
		r.Keys, r.Fetched = keys, fetched.UTC()
	}
	return r, nil
}
