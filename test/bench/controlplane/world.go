package main

import (
	"fmt"
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// size is how large a cluster is. 2,000 pods make 2,206 resources: pods, services, the settings of the mesh and those that
// all workloads share.
type size struct{ pods, nodes int }

func (s size) services() int  { return s.pods/10 + 4 }
func (s size) resources() int { return s.pods + s.services() + 2 }

const perNamespace = 10 // services

// world are the objects of a cluster of a size, in an API server.
type world struct {
	size  size
	api   *apiServer
	pods  []*corev1.Pod // as they are stored
	marks int
}

func newWorld(sz size) (*world, error) {
	w := &world{size: sz, api: newAPIServer(), pods: make([]*corev1.Pod, sz.pods)}
	for i := range sz.nodes {
		if err := w.api.put("/api/v1/nodes", node(i)); err != nil {
			return nil, err
		}
	}
	slices := make([]*discoveryv1.EndpointSlice, sz.services())
	for i := range slices {
		slices[i] = slice(i)
		if err := w.api.put("/api/v1/services", service(i)); err != nil {
			return nil, err
		}
	}
	for i := range w.pods {
		w.pods[i] = pod(i, sz)
		s := slices[i%sz.services()]
		s.Endpoints = append(s.Endpoints, endpoint(w.pods[i]))
		if err := w.api.put("/api/v1/pods", w.pods[i]); err != nil {
			return nil, err
		}
	}
	for _, s := range slices {
		if err := w.api.put("/apis/discovery.k8s.io/v1/endpointslices", s); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// flip makes a ready pod unready or the other way, and returns the pod as it is now.
func (w *world) flip(i int) (*corev1.Pod, error) {
	p := w.pods[i].DeepCopy()
	c := &p.Status.Conditions[0]
	if c.Status == corev1.ConditionTrue {
		c.Status = corev1.ConditionFalse
	} else {
		c.Status = corev1.ConditionTrue
	}
	w.pods[i] = p
	return p, w.api.put("/api/v1/pods", p)
}

// mark gives a pod a version that it never had, and returns the pod: who has that has all that came before.
func (w *world) mark(i int) (*corev1.Pod, error) {
	p := w.pods[i].DeepCopy()
	w.marks++
	p.Labels["version"] = "mark-" + strconv.Itoa(w.marks)
	w.pods[i] = p
	return p, w.api.put("/api/v1/pods", p)
}

func addr(second byte, i int) string {
	return netip.AddrFrom4([4]byte{10, second + byte(i>>16), byte(i >> 8), byte(i)}).String()
}

func node(i int) *corev1.Node {
	return &corev1.Node{TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Name: nodeName(i), UID: types.UID("node-uid-" + strconv.Itoa(i)),
			Labels: map[string]string{"topology.kubernetes.io/region": "region-1", "topology.kubernetes.io/zone": fmt.Sprintf("zone-%d", i%3)}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr(200, i+1)}}}}
}

func nodeName(i int) string { return fmt.Sprintf("node-%d.example.internal", i) }

func appName(service int) (namespace, name string) {
	return fmt.Sprintf("team-%d", service/perNamespace), fmt.Sprintf("app-%d", service)
}

func service(i int) *corev1.Service {
	ns, name := appName(i)
	return &corev1.Service{TypeMeta: metav1.TypeMeta{Kind: "Service", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID("service-uid-" + strconv.Itoa(i)), Labels: map[string]string{"app": name}},
		Spec: corev1.ServiceSpec{ClusterIP: addr(100, i+1), ClusterIPs: []string{addr(100, i+1)}, Selector: map[string]string{"app": name},
			Type: corev1.ServiceTypeClusterIP, Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}}}}
}

func slice(i int) *discoveryv1.EndpointSlice {
	ns, name := appName(i)
	port, portName, proto := int32(8080), "http", corev1.ProtocolTCP
	return &discoveryv1.EndpointSlice{TypeMeta: metav1.TypeMeta{Kind: "EndpointSlice", APIVersion: "discovery.k8s.io/v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name + "-x7k2p", Labels: map[string]string{discoveryv1.LabelServiceName: name,
			discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &proto}}}
}

func endpoint(p *corev1.Pod) discoveryv1.Endpoint {
	yes, no, node := true, false, p.Spec.NodeName
	return discoveryv1.Endpoint{Addresses: []string{p.Status.PodIP}, NodeName: &node,
		Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID}}
}

// pod is one of a Deployment, as an API server shows it: about 3 KB of JSON, most of which the mesh does not read.
func pod(i int, sz size) *corev1.Pod {
	ns, name := appName(i % sz.services())
	owner, yes, ip := name+"-6d4f9c7b58", true, addr(0, i+1)
	container := corev1.Container{Name: "app", Image: "registry.example/team/" + name + ":v1.2.3", ImagePullPolicy: corev1.PullIfNotPresent,
		Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}},
		Env: []corev1.EnvVar{{Name: "LOG_LEVEL", Value: "info"}, {Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{
			FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.name"}}}},
		Resources:      corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")}},
		ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt32(8080)}}, PeriodSeconds: 10},
		VolumeMounts:   []corev1.VolumeMount{{Name: "kube-api-access-abcde", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}}}
	return &corev1.Pod{TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("%s-%05x", owner, i), UID: types.UID(fmt.Sprintf("8f1c0000-0000-4000-8000-%012x", i)),
			GenerateName: owner + "-", Labels: map[string]string{"app": name, "version": "v1", "pod-template-hash": "6d4f9c7b58"},
			Annotations:     map[string]string{"ambient.istio.io/redirection": "enabled", "prometheus.io/scrape": "true", "prometheus.io/port": "8080"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: owner, UID: types.UID("owner-" + name), Controller: &yes}},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet", Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", Subresource: "status",
				FieldsType: "FieldsV1", FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:status":{"f:conditions":{"k:{\"type\":\"Ready\"}":{".":{},"f:status":{}}},"f:containerStatuses":{},"f:hostIP":{},"f:phase":{},"f:podIP":{},"f:podIPs":{},"f:startTime":{}}}`)}}}},
		Spec: corev1.PodSpec{NodeName: nodeName(i % sz.nodes), ServiceAccountName: name, Containers: []corev1.Container{container},
			RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst, SchedulerName: "default-scheduler",
			Tolerations: []corev1.Toleration{{Key: "node.kubernetes.io/not-ready", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}, HostIP: addr(200, i%sz.nodes+1),
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
				{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}, {Type: corev1.ContainersReady, Status: corev1.ConditionTrue}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "app", Ready: true, Image: container.Image, ContainerID: "containerd://" + fmt.Sprintf("%064x", i)}}}}
}
