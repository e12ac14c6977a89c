package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	"github.com/undermesh/undermesh/ztunnel/explain"
)

// maxDecision bounds what is read of a decision or a record, in bytes: a record holds all endpoints of its services.
const maxDecision = 256 << 20

// explainCommand says what becomes of a request, and why.
func (f *frame) explainCommand() *cobra.Command {
	var replay string
	cmd := &cobra.Command{
		Use:   "explain",
		Short: "Say what becomes of a request and why: route, cluster, endpoint, policy",
		Long: `Say what becomes of a request and why, without sending it: by the code and by the snapshot of the node of the pod that would send
it, and by the endpoints that its own outlier detection has taken out.`,
		Example: "  undermesh explain request deployment/sleep GET http://reviews:9080/reviews/0 -H 'end-user: jason'\n  undermesh explain --replay decision.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if replay == "" {
				return cmd.Help()
			}
			return f.replay(replay)
		},
	}
	f.outputFlag(cmd)
	cmd.Flags().StringVar(&replay, "replay", "", "decide again what is in a file of \"undermesh record\", and compare")
	cmd.AddCommand(f.explainRequestCommand())
	return cmd
}

func (f *frame) explainRequestCommand() *cobra.Command {
	ask := url.Values{}
	cmd := &cobra.Command{
		Use:   "request POD[.NAMESPACE] METHOD URL",
		Short: "Say what becomes of a request that a pod would make",
		Args:  cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := f.askRequest(cmd.Context(), args, ask)
			if err != nil {
				return err
			}
			d := &explain.Decision{}
			if err := json.Unmarshal(raw, d); err != nil {
				return fmt.Errorf("read decision: %w", err)
			}
			return f.printDecision(d)
		},
	}
	f.outputFlag(cmd)
	requestFlags(cmd, ask)
	return cmd
}

// requestFlags are those that a request has beside method and URL.
func requestFlags(cmd *cobra.Command, ask url.Values) {
	var headers []string
	var address string
	cmd.Flags().StringArrayVarP(&headers, "header", "H", nil, "a header, NAME: VALUE; several times")
	cmd.Flags().StringVar(&address, "address", "", "IP:PORT that is dialled (default: where the URL's name leads to)")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ask["header"] = headers
		if address != "" {
			ask.Set("address", address)
		}
		return run(cmd, args)
	}
}

// askRequest asks the node of the pod; args are POD, METHOD and URL.
func (f *frame) askRequest(ctx context.Context, args []string, ask url.Values) ([]byte, error) {
	c, err := f.connect()
	if err != nil {
		return nil, err
	}
	ask.Set("method", args[1])
	ask.Set("url", args[2])
	return c.askOfPod(ctx, f, args[0], http.MethodGet, "explain", ask, maxDecision)
}

func (f *frame) printDecision(d *explain.Decision) error {
	if f.output != "" {
		return f.print(d, nil)
	}
	_, err := fmt.Fprint(f.out, d.Text())
	return err
}

// recordCommand keeps a decision with what it was made of.
func (f *frame) recordCommand() *cobra.Command {
	ask := url.Values{"record": {""}}
	var file string
	cmd := &cobra.Command{
		Use:   "record POD[.NAMESPACE] METHOD URL",
		Short: "Write what becomes of a request, with what decides it, to a file that \"explain --replay\" decides again",
		Args:  cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := f.askRequest(cmd.Context(), args, ask)
			if err != nil {
				return err
			}
			r, err := explain.ReadRecord(raw)
			if err != nil {
				return err
			}
			text, err := json.MarshalIndent(r, "", "  ")
			if err != nil {
				return fmt.Errorf("encode record: %w", err)
			}
			if err := os.WriteFile(file, append(text, '\n'), 0o600); err != nil {
				return fmt.Errorf("write record: %w", err)
			}
			fmt.Fprintf(f.out, "%d resources, written to %s: %s\n", len(r.Resources), file, r.Decision.Outcome)
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "decision.json", "where to write it")
	requestFlags(cmd, ask)
	return cmd
}

// replay decides again what was recorded. That it comes out otherwise is an error.
func (f *frame) replay(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read record: %w", err)
	}
	r, err := explain.ReadRecord(raw)
	if err != nil {
		return fmt.Errorf("file %s: %w", path, err)
	}
	d, err := r.Decide()
	if err != nil {
		return err
	}
	if err := f.printDecision(d); err != nil {
		return err
	}
	diff, err := r.Differs(d)
	if err != nil {
		return err
	}
	if diff != "" {
		return errors.New("this build decides otherwise than what was recorded:\n" + diff)
	}
	return nil
}
