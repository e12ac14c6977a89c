package main

import "github.com/spf13/cobra"

// proxyConfigCommand shows what one proxy holds; each of its verbs is a file of its own.
func (f *frame) proxyConfigCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "proxy-config", Aliases: []string{"pc"}, Short: "Show what the proxy of a pod holds"}
	cmd.AddCommand(f.proxyConfigSecretCommand(), f.proxyConfigLogCommand())
	cmd.AddCommand(f.proxyConfigViews()...)
	return cmd
}
