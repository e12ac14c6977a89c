package enroll

import (
	"crypto/sha256"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

const (
	// maxText bounds a text about a pod, in bytes: a pod's owner writes up to 256 KiB into an annotation.
	maxText = 1024
	// maxWarnings bounds the warnings about one pod spec.
	maxWarnings = 16
	// maxSaid bounds what is remembered of a pod's events.
	maxSaid = 64
)

// shorten leaves out the middle of a long text: its head names object and field, its tail the cause.
func shorten(text string) string {
	if len(text) <= maxText {
		return text
	}
	const half = maxText/2 - 20 // the note fits into the rest
	return fmt.Sprintf("%s … %d bytes … %s", strings.ToValidUTF8(text[:half], ""), len(text)-2*half, strings.ToValidUTF8(text[len(text)-half:], ""))
}

// said is the digest of an event, so that its text need not be kept.
type said [sha256.Size]byte

// say emits an event unless it was emitted before, and reports whether it did.
func (p *machine) say(pod *corev1.Pod, kind, reason, text string) bool {
	if pod == nil {
		return false
	}
	text = shorten(text)
	key := said(sha256.Sum256([]byte(reason + "\x00" + text)))
	p.mu.Lock()
	repeated := p.said[key]
	if p.said == nil || len(p.said) >= maxSaid && !repeated {
		p.said = map[said]bool{}
	}
	p.said[key] = true
	p.mu.Unlock()
	if !repeated {
		p.m.cfg.Events.Event(pod, kind, reason, text)
	}
	return !repeated
}

// warn logs and says what is wrong with the pod's spec, each text once.
func (p *machine) warn(pod *corev1.Pod, reason string, texts []string) {
	if left := len(texts) - maxWarnings; left > 0 {
		texts = append(texts[:maxWarnings:maxWarnings], fmt.Sprintf("pod %s/%s: and %d more", pod.Namespace, pod.Name, left))
	}
	for _, text := range texts {
		if p.say(pod, corev1.EventTypeWarning, reason, text) {
			p.log.Warn("pod spec has no effect in part", "reason", reason, "cause", shorten(text))
		}
	}
}
