package main

import (
	"errors"
	"flag"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/undermesh/undermesh/cmd/controller/app"
)

// meshCommand is the controller on a directory of YAML: the mesh without Kubernetes. Its flags are the controller's.
func (f *frame) meshCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "mesh --config DIR --token-file FILE --cert-dir DIR [controller flags]",
		Short:              "Run the controller on a directory of YAML instead of an API server",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := app.Parse("undermesh mesh", args, f.err)
			if errors.Is(err, flag.ErrHelp) {
				return nil
			} else if err != nil {
				return err
			}
			return app.Run(cmd.Context(), o, slog.New(slog.NewJSONHandler(f.err, &slog.HandlerOptions{Level: o.LogLevel})))
		},
	}
}
