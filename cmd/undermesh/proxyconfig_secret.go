package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/identity"
)

// proxyConfigSecretCommand shows the certificates of one workload as the documents' command does (MT-25). There is no key in
// what it reads.
func (f *frame) proxyConfigSecretCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "secret POD[.NAMESPACE]",
		Aliases: []string{"secrets", "s"},
		Short:   "Show a pod's certificate, its chain and its root",
		Example: "  undermesh proxy-config secret sleep-7dd87cc47d-abcde.foo\n  undermesh proxy-config secret sleep-7dd87cc47d-abcde -n foo -o json",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return f.proxyConfigSecret(cmd.Context(), args[0]) },
	}
	f.outputFlag(cmd)
	return cmd
}

func (f *frame) proxyConfigSecret(ctx context.Context, arg string) error {
	c, err := f.connect()
	if err != nil {
		return err
	}
	pod, err := c.podOf(ctx, arg, f.namespace)
	if err != nil {
		return err
	}
	name, namespace := pod.Name, pod.Namespace
	if pod.Annotations[api.AnnotationRedirection] != api.RedirectionEnabled {
		return fmt.Errorf("pod %s/%s is not in the mesh: it has no certificate", namespace, name)
	}
	zts, err := c.ztunnels(ctx, f.istioNamespace, pod.Spec.NodeName)
	if err != nil {
		return err
	}
	var errs []error
	for _, zt := range zts { // during an update there are two, and one of them has the pod
		list, err := c.heldBy(ctx, zt.Namespace, zt.Name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if info := certificateOf(list.Certificates, pod); info != nil {
			return f.print(secretDump(*info), secretRows(*info, time.Now()))
		}
	}
	return errors.Join(append(errs, fmt.Errorf("pod %s/%s: the ztunnel of node %s holds no certificate of account %s",
		namespace, name, pod.Spec.NodeName, account(pod)))...)
}

// podArgument reads POD, POD.NAMESPACE, pod/POD. A name may have dots itself, a namespace has none; beside -n NAMESPACE what
// ends in another one is a name.
func podArgument(arg, namespace string) (string, string) {
	arg = strings.TrimPrefix(strings.TrimPrefix(arg, "pods/"), "pod/")
	dot := strings.LastIndexByte(arg, '.')
	switch {
	case dot >= 0 && (namespace == "" || namespace == arg[dot+1:]):
		return arg[:dot], arg[dot+1:]
	case namespace == "":
		return arg, metav1.NamespaceDefault
	}
	return arg, namespace
}

func account(pod *corev1.Pod) string {
	if pod.Spec.ServiceAccountName == "" {
		return "default"
	}
	return pod.Spec.ServiceAccountName
}

// certificateOf picks the entry of the pod's account, the one in use if the trust domain is being changed.
func certificateOf(list []identity.Info, pod *corev1.Pod) (out *identity.Info) {
	for i, info := range list {
		id, err := api.ParseIdentity(info.Identity)
		if err != nil || id.Namespace != pod.Namespace || id.ServiceAccount != account(pod) {
			continue
		}
		if out == nil || info.Holds > out.Holds {
			out = &list[i]
		}
	}
	return out
}

// The shape of Envoy's SecretsConfigDump, which the documents' scripts read.
type (
	secretsDump struct {
		DynamicActiveSecrets  []dynamicSecret `json:"dynamicActiveSecrets,omitempty"`
		DynamicWarmingSecrets []dynamicSecret `json:"dynamicWarmingSecrets,omitempty"`
	}
	dynamicSecret struct {
		Name        string      `json:"name"`
		VersionInfo string      `json:"versionInfo,omitempty"`
		LastUpdated time.Time   `json:"lastUpdated,omitzero"`
		Secret      envoySecret `json:"secret"`
	}
	envoySecret struct {
		Type              string             `json:"@type"`
		Name              string             `json:"name"`
		TLSCertificate    *tlsCertificate    `json:"tlsCertificate,omitempty"`
		ValidationContext *validationContext `json:"validationContext,omitempty"`
	}
	tlsCertificate struct {
		CertificateChain inlineBytes `json:"certificateChain"`
	}
	validationContext struct {
		TrustedCA inlineBytes `json:"trustedCa"`
	}
	inlineBytes struct {
		InlineBytes []byte `json:"inlineBytes"` // base64
	}
)

const envoySecretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

func secretDump(info identity.Info) secretsDump {
	if len(info.CertChain) == 0 {
		return secretsDump{DynamicWarmingSecrets: []dynamicSecret{{Name: "default", Secret: envoySecret{Type: envoySecretType, Name: "default"}}}}
	}
	chain := info.CertChain
	if len(chain) > 1 { // what goes over the wire: leaf, intermediate, root
		chain = append(chain[:len(chain):len(chain)], info.RootCerts...)
	}
	leaf := info.CertChain[0]
	one := func(name string, s envoySecret) dynamicSecret {
		s.Type, s.Name = envoySecretType, name
		return dynamicSecret{Name: name, VersionInfo: leaf.SerialNumber, LastUpdated: leaf.ValidFrom, Secret: s}
	}
	return secretsDump{DynamicActiveSecrets: []dynamicSecret{
		one("default", envoySecret{TLSCertificate: &tlsCertificate{inlineBytes{joined(chain)}}}),
		one("ROOTCA", envoySecret{ValidationContext: &validationContext{inlineBytes{joined(info.RootCerts)}}}),
	}}
}

func joined(list []identity.Part) (out []byte) {
	for _, p := range list {
		if block, _ := pem.Decode(p.PEM); block != nil && block.Type == "CERTIFICATE" { // nothing else leaves here
			out = append(out, p.PEM...)
		}
	}
	return out
}

func secretRows(info identity.Info, now time.Time) [][]string {
	rows := [][]string{{"RESOURCE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"}}
	status := "ACTIVE"
	if info.State != identity.StateAvailable {
		status = "WARMING"
	}
	add := func(name, kind string, p identity.Part) {
		valid := now.After(p.ValidFrom) && now.Before(p.ExpirationTime)
		rows = append(rows, []string{name, kind, status, fmt.Sprint(valid), p.SerialNumber,
			p.ExpirationTime.UTC().Format(time.RFC3339), p.ValidFrom.UTC().Format(time.RFC3339)})
	}
	if len(info.CertChain) == 0 {
		return append(rows, []string{"default", "Cert Chain", status, "false", "", "", ""})
	}
	add("default", "Cert Chain", info.CertChain[0])
	for _, p := range info.RootCerts {
		add("ROOTCA", "CA", p)
	}
	return rows
}
