package enroll

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// configMirror is on the mirror of a static pod in the API; its value is kubelet's UID of the pod.
const configMirror = "kubernetes.io/config.mirror"

// groupUID is the UID by which kubelet names the pod's cgroup: that of the API, for a static pod kubelet's own.
func groupUID(pod *corev1.Pod) string {
	hash := pod.Annotations[configHash]
	ofNode := slices.ContainsFunc(pod.OwnerReferences, func(o metav1.OwnerReference) bool { return o.Kind == "Node" && o.Name == pod.Spec.NodeName })
	if hash != "" && hash == pod.Annotations[configMirror] && ofNode {
		return hash
	}
	return string(pod.UID)
}

// podGroup is kubelet's name of a pod's cgroup. Its cgroupfs driver makes kubepods/QOS/podUID, the systemd driver
// kubepods.slice/kubepods-QOS.slice/kubepods-QOS-podUID.slice with underscores in the UID; the guaranteed class has no
// level of its own.
type podGroup struct {
	uid     string // as in the name
	systemd bool
}

func (g podGroup) is(uid string) bool {
	if g.systemd {
		uid = strings.ReplaceAll(uid, "-", "_")
	}
	return g.uid == uid
}

// inPod reports whether a /proc/PID/cgroup file puts the process into the pod's group: in at least one hierarchy, and
// into no other pod's in any.
func inPod(cgroups, uid string) bool {
	found := false
	for line := range strings.Lines(cgroups) {
		_, path, ok := cutCgroup(strings.TrimSuffix(line, "\n"))
		if !ok {
			continue
		}
		switch g, _ := podOf(path); {
		case g == podGroup{}:
		case !g.is(uid):
			return false
		default:
			found = true
		}
	}
	return found
}

// belowKubepods reports whether a /proc/PID/cgroup file puts the process into what kubelet keeps for pods.
func belowKubepods(cgroups string) bool {
	for line := range strings.Lines(cgroups) {
		if _, path, ok := cutCgroup(strings.TrimSuffix(line, "\n")); ok {
			if _, below := podOf(path); below {
				return true
			}
		}
	}
	return false
}

// podOf reads the pod from a cgroup path and tells whether it lies below kubelet's group for pods at all. Only kubelet's
// own level counts: below it a container with a writable hierarchy gives groups any name. A path that begins with ".."
// is told from the agent's own pod.
func podOf(path string) (g podGroup, below bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	relative := parts[0] == ".."
	for len(parts) > 0 && parts[0] == ".." {
		parts = parts[1:]
	}
	if relative && len(parts) > 0 {
		if g, ok := podIn(parts); ok {
			return g, true
		}
	}
	i := slices.IndexFunc(parts, kubepods)
	if i < 0 {
		return podGroup{}, false
	}
	g, _ = podIn(parts[i+1:])
	return g, true
}

// kubepods reports whether a group is kubelet's for all pods; with --cgroup-root NAME the systemd driver puts NAME before.
func kubepods(name string) bool {
	return name == "kubepods" || name == "kubepods.slice" || strings.HasSuffix(name, "-kubepods.slice")
}

// podIn reads the first component, after that of a QoS class.
func podIn(parts []string) (podGroup, bool) {
	if len(parts) > 1 && qosClass(parts[0]) {
		parts = parts[1:]
	}
	if len(parts) == 0 {
		return podGroup{}, false
	}
	if slice, ok := strings.CutSuffix(parts[0], ".slice"); ok {
		i := strings.LastIndex(slice, "-pod")
		if i < 0 || i+len("-pod") == len(slice) {
			return podGroup{}, false
		}
		return podGroup{uid: slice[i+len("-pod"):], systemd: true}, true
	}
	uid, ok := strings.CutPrefix(parts[0], "pod")
	if !ok || uid == "" {
		return podGroup{}, false
	}
	return podGroup{uid: uid}, true
}

func qosClass(name string) bool {
	return name == "besteffort" || name == "burstable" ||
		strings.HasSuffix(name, "kubepods-besteffort.slice") || strings.HasSuffix(name, "kubepods-burstable.slice")
}

// cutCgroup splits "ID:CONTROLLERS:PATH".
func cutCgroup(line string) (controllers, path string, ok bool) {
	parts := strings.SplitN(line, ":", 3)
	if len(parts) != 3 {
		return "", "", false
	}
	return parts[1], parts[2], true
}
