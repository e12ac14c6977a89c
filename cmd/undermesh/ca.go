package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/ca"
)

func (f *frame) caCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ca", Short: "Look at the roots of the mesh, and replace them"}
	status := &cobra.Command{Use: "status", Short: "Which root signs, which are trusted, and whose certificates are in use", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.caStatus(cmd.Context()) }}
	f.outputFlag(status)
	var wait time.Duration
	rotate := &cobra.Command{Use: "rotate", Short: "Replace the self-signed root while both are trusted", Args: cobra.NoArgs,
		Long: "Publishes a new root, waits until every node trusts it, lets it sign, and waits until no certificate of the old one is in\n" +
			"use. The old root stays trusted until everything that it signed has expired, or until \"ca withdraw\". Interrupted, it can\n" +
			"be run again; the controller goes on by itself, with longer waits. Roots of the Secret cacerts are replaced by changing it;\n" +
			"when its key is gone for good, this goes on with a self-signed one.",
		RunE: func(cmd *cobra.Command, _ []string) error { return f.caRotate(cmd.Context(), wait) }}
	rotate.Flags().DurationVar(&wait, "wait", 15*time.Minute, "how long each step may take")
	var force bool
	var withdrawn time.Duration
	withdraw := &cobra.Command{Use: "withdraw", Short: "Trust the old roots no longer", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.caWithdraw(cmd.Context(), force, withdrawn) }}
	withdraw.Flags().BoolVar(&force, "force", false, "although certificates of theirs are in use, or nodes cannot be asked: their connections end")
	withdraw.Flags().DurationVar(&withdrawn, "wait", time.Minute, "how long the controller may take")
	cmd.AddCommand(status, rotate, withdraw)
	return cmd
}

// rootState is one line of "ca status".
type rootState struct {
	Root         string    `json:"root"`         // fingerprint
	Role         string    `json:"role"`         // signs, next, trusted
	Until        time.Time `json:"until"`        // when it ends, or is withdrawn
	Certificates int       `json:"certificates"` // in use on the nodes
	Nodes        int       `json:"nodes"`        // that trust it
}

// caState is what is known of the roots.
type caState struct {
	Roots []rootState `json:"roots"`
	Nodes int         `json:"nodes"` // that were asked
	Steps []ca.Step   `json:"steps,omitempty"`
	// Lost says that a controller that starts finds no key to sign with, and how to go on.
	Lost string `json:"lost,omitempty"`
	// Unknown are the nodes that could not be asked, with the reason.
	Unknown []string `json:"unknown,omitempty"`
}

func (c *cluster) record(ctx context.Context, namespace string) (*ca.Record, error) {
	s, err := c.kube.CoreV1().Secrets(namespace).Get(ctx, ca.RotationSecretName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("secret %s/%s does not exist: the controller has not led yet", namespace, ca.RotationSecretName)
	}
	if err != nil {
		return nil, fmt.Errorf("read secret %s/%s: %w", namespace, ca.RotationSecretName, err)
	}
	return ca.ParseRotationSecret(s)
}

// caState asks the record and every node.
func (c *cluster) caState(ctx context.Context, namespace string) (*caState, *ca.Record, error) {
	rec, err := c.record(ctx, namespace)
	if err != nil {
		return nil, nil, err
	}
	out := &caState{Steps: rec.Steps}
	add := func(role string, raw []byte, until time.Time) {
		name := ca.Fingerprint(raw)
		if len(raw) > 0 && !slices.ContainsFunc(out.Roots, func(r rootState) bool { return r.Root == name }) {
			if until.IsZero() {
				until, _ = ca.Expiry(raw)
			}
			out.Roots = append(out.Roots, rootState{Root: name, Role: role, Until: until})
		}
	}
	external := "signs workloads, externally"
	if rec.ExternalFrom.IsZero() {
		external = "next, externally"
	}
	add(external, rec.External, time.Time{})
	add("signs", rec.Root, time.Time{})
	add("next", rec.Next, time.Time{})
	for _, o := range rec.Trusted {
		add("trusted", o.Root, o.Until)
	}
	if out.Lost, err = c.lostKey(ctx, namespace, rec); err != nil {
		return nil, nil, err
	}
	zts, err := c.ztunnels(ctx, namespace, "")
	if err != nil {
		out.Unknown = append(out.Unknown, err.Error())
		return out, rec, nil
	}
	for _, zt := range zts {
		node, err := c.heldBy(ctx, zt.Namespace, zt.Name)
		if err != nil {
			out.Unknown = append(out.Unknown, fmt.Sprintf("node %s: %v", zt.Spec.NodeName, err))
			continue
		}
		out.count(node)
	}
	return out, rec, nil
}

// lostKey says that the key of the root that signs is in no Secret, "" when it is.
func (c *cluster) lostKey(ctx context.Context, namespace string, rec *ca.Record) (string, error) {
	var secrets []map[string][]byte
	for _, name := range []string{ca.PlugInSecret, api.CASecret} {
		s, err := c.kube.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return "", fmt.Errorf("read secret %s/%s: %w", namespace, name, err)
		}
		if err == nil {
			secrets = append(secrets, s.Data)
		}
	}
	if rec.KeyStored(time.Now(), secrets...) {
		return "", nil
	}
	return fmt.Sprintf("the key of root %s is neither in the Secret %s nor in %s: a controller that starts is not ready. "+
		"Put the Secret back, or go on with a self-signed root: undermesh ca rotate", ca.Fingerprint(rec.Root), ca.PlugInSecret, api.CASecret), nil
}

func (s *caState) count(node *held) {
	s.Nodes++
	find := func(root []byte) *rootState {
		name := ca.Fingerprint(root)
		i := slices.IndexFunc(s.Roots, func(r rootState) bool { return r.Root == name })
		if i < 0 {
			s.Roots = append(s.Roots, rootState{Root: name, Role: "unknown to the controller"})
			i = len(s.Roots) - 1
		}
		return &s.Roots[i]
	}
	for _, r := range node.Roots {
		find(r.PEM).Nodes++
	}
	for _, i := range node.Certificates {
		for _, r := range i.RootCerts {
			if block, _ := pem.Decode(r.PEM); block != nil {
				find(r.PEM).Certificates++
			}
		}
	}
}

func (f *frame) caStatus(ctx context.Context) error {
	c, err := f.connect()
	if err != nil {
		return err
	}
	s, _, err := c.caState(ctx, f.istioNamespace)
	if err != nil {
		return err
	}
	rows := [][]string{{"ROOT", "ROLE", "UNTIL", "CERTIFICATES", "NODES"}}
	for _, r := range s.Roots {
		rows = append(rows, []string{r.Root, r.Role, r.Until.UTC().Format(time.RFC3339), fmt.Sprint(r.Certificates), fmt.Sprintf("%d/%d", r.Nodes, s.Nodes)})
	}
	if err := f.print(s, rows); err != nil {
		return err
	}
	var lost, unknown error
	if s.Lost != "" {
		lost = errors.New(s.Lost)
	}
	if len(s.Unknown) > 0 {
		unknown = fmt.Errorf("not every node could be asked: %v", s.Unknown)
	}
	return errors.Join(lost, unknown)
}

// request leaves an operator's word at the record.
func (c *cluster) request(ctx context.Context, namespace, step string) error {
	by := "unknown"
	if me, err := c.kube.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{}); err == nil {
		by = me.Status.UserInfo.Username
	}
	text, err := json.Marshal(ca.Request{Step: step, By: by, At: time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{ca.RequestAnnotation: string(text)}}})
	if err != nil {
		return err
	}
	if _, err := c.kube.CoreV1().Secrets(namespace).Patch(ctx, ca.RotationSecretName, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("ask the controller to %s: %w", step, err)
	}
	return nil
}

// refused is the last step of a record without a request if it says no.
func refused(rec *ca.Record) error {
	if rec.Request == nil && len(rec.Steps) > 0 {
		if last := rec.Steps[len(rec.Steps)-1]; ca.IsRefusal(last) {
			return errors.New(last.What)
		}
	}
	return nil
}

func (f *frame) caRotate(ctx context.Context, wait time.Duration) error {
	c, err := f.connect()
	if err != nil {
		return err
	}
	rec, err := c.record(ctx, f.istioNamespace)
	if err != nil {
		return err
	}
	old := rec.Root
	if len(rec.Next) == 0 {
		if err := c.request(ctx, f.istioNamespace, ca.RequestRotate); err != nil {
			return err
		}
		err := poll(ctx, wait, "the next root", func(ctx context.Context) (string, error) {
			if rec, err = c.record(ctx, f.istioNamespace); err != nil {
				return "", err
			}
			if len(rec.Next) > 0 {
				return "", nil
			}
			if rec.Request != nil {
				return "the controller has not answered", nil
			}
			return "it is not there", refused(rec)
		})
		if err != nil {
			return err
		}
	}
	next := rec.Next
	fmt.Fprintf(f.out, "✓ Root %s is published beside %s\n", ca.Fingerprint(next), ca.Fingerprint(old))
	if err := c.awaitNodes(ctx, f.istioNamespace, wait, "every node to trust the next root", func(s *caState) string {
		return s.lacking(next)
	}); err != nil {
		return err
	}
	fmt.Fprintln(f.out, "✓ Every node trusts it")
	if rec, err = c.record(ctx, f.istioNamespace); err != nil {
		return err
	}
	if slices.Equal(rec.Next, next) {
		if err := c.request(ctx, f.istioNamespace, ca.RequestSwitch); err != nil {
			return err
		}
	}
	if err := poll(ctx, wait, "the next root to sign", func(ctx context.Context) (string, error) {
		if rec, err = c.record(ctx, f.istioNamespace); err != nil || slices.Equal(rec.Root, next) {
			return "", err
		}
		return "the old one signs", nil
	}); err != nil {
		return err
	}
	fmt.Fprintf(f.out, "✓ Root %s signs\n", ca.Fingerprint(next))
	if err := c.awaitNodes(ctx, f.istioNamespace, wait, "certificates of the old root to be renewed", func(s *caState) string {
		return s.using(old)
	}); err != nil {
		return err
	}
	fmt.Fprintf(f.out, "✓ No certificate of root %s is in use\n", ca.Fingerprint(old))
	for _, o := range rec.Trusted {
		fmt.Fprintf(f.out, "Root %s stays trusted until %s, or until \"undermesh ca withdraw\".\n", ca.Fingerprint(o.Root), o.Until.UTC().Format(time.RFC3339))
	}
	return nil
}

// lacking says who does not trust a root yet, "" when everybody does.
func (s *caState) lacking(root []byte) string {
	if len(s.Unknown) > 0 {
		return fmt.Sprint("not every node could be asked: ", s.Unknown)
	}
	for _, r := range s.Roots {
		if r.Root == ca.Fingerprint(root) && r.Nodes == s.Nodes && s.Nodes > 0 {
			return ""
		}
	}
	return fmt.Sprintf("not all of %d nodes", s.Nodes)
}

// using says how many certificates of a root are in use, "" for none.
func (s *caState) using(root []byte) string {
	if len(s.Unknown) > 0 {
		return fmt.Sprint("not every node could be asked: ", s.Unknown)
	}
	for _, r := range s.Roots {
		if r.Root == ca.Fingerprint(root) && r.Certificates > 0 {
			return fmt.Sprintf("%d certificates of root %s are in use", r.Certificates, r.Root)
		}
	}
	return ""
}

// awaitNodes asks every node until missing says "". A node that cannot be asked is waited for.
func (c *cluster) awaitNodes(ctx context.Context, namespace string, limit time.Duration, what string, missing func(*caState) string) error {
	var asked time.Time
	last := ""
	return poll(ctx, limit, what, func(ctx context.Context) (string, error) {
		if time.Since(asked) < 3*time.Second {
			return last, nil
		}
		asked = time.Now()
		s, _, err := c.caState(ctx, namespace)
		if err != nil {
			return "", err
		}
		last = missing(s)
		return last, nil
	})
}

func (f *frame) caWithdraw(ctx context.Context, force bool, wait time.Duration) error {
	c, err := f.connect()
	if err != nil {
		return err
	}
	s, rec, err := c.caState(ctx, f.istioNamespace)
	if err != nil {
		return err
	}
	if len(rec.Trusted) == 0 {
		return errors.New("there is no old root")
	}
	for _, o := range rec.Trusted {
		if why := s.using(o.Root); why != "" && !force {
			return fmt.Errorf("%s: wait until they are renewed, or use --force", why)
		}
	}
	if err := c.request(ctx, f.istioNamespace, ca.RequestWithdraw); err != nil {
		return err
	}
	err = poll(ctx, wait, "the controller", func(ctx context.Context) (string, error) {
		if rec, err = c.record(ctx, f.istioNamespace); err != nil || len(rec.Trusted) == 0 {
			return "", err
		}
		return "the old root is still trusted", refused(rec)
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(f.out, "✓ Old roots are withdrawn")
	return nil
}
