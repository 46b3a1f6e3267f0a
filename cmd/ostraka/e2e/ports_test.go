package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// freeBasePort returns a port such that it and the ones that `ostraka dev` counts from it are free.
func freeBasePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		base := 20000 + 100*rand.IntN(400)
		if allFree(base) {
			return strconv.Itoa(base)
		}
	}
	t.Fatal("no free ports")
	return ""
}

func allFree(base int) bool {
	for node := range 3 {
		for offset := range 3 {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+10*node+offset))
			if err != nil {
				return false
			}
			l.Close()
		}
	}
	return true
}
