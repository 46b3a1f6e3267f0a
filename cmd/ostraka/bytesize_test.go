package main

import "testing"

func TestByteSize(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "1073741824": 1 << 30, "9007199254740993": 1<<53 + 1, "512MiB": 512 << 20, "1.5 GiB": 3 << 29,
		"2gb": 2e9, "7 B": 7, "1KiB": 1024, "4TiB": 4 << 40} {
		var b byteSize
		if err := b.Set(text); err != nil || int64(b) != want {
			t.Errorf("%q: %d, %v, want %d", text, b, err, want)
		}
	}
	for _, text := range []string{"", "MiB", "4G", "-1", "1e9", "4 GiB more", "99999999999TiB", "1.2.3MiB"} {
		var b byteSize
		if err := b.Set(text); err == nil {
			t.Errorf("%q: %d", text, b)
		}
	}
}
