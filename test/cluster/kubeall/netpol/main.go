// Command netpol is a placeholder until the engine below is in place.
package main

func main() {}
