package shard

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
)

// Published by others, so that this package and its golden file can't be wrong together: the first is in the Redis
// Cluster specification (CRC16 of it is 0x31C3), the others in its CLUSTER KEYSLOT page and in Dragonfly's, and the last in
// the redis-protocol crate.
func TestSlotOfPublishedVectors(t *testing.T) {
	for key, want := range map[string]Slot{
		"123456789":                        0x31C3,
		"somekey":                          11058,
		"foo{hash_tag}":                    2515,
		"bar{hash_tag}":                    2515,
		"{user1}.following":                8106,
		"8xjx7vWrfPq54mKfFD3Y1CcjjofpnAcQ": 5458,
	} {
		if got := SlotOfString(key); got != want {
			t.Errorf("slot of %q is %d, want %d", key, got, want)
		}
	}
}

func TestSlotOfGoldenFile(t *testing.T) {
	file, err := os.Open("testdata/slots.golden")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines, vectors := bufio.NewScanner(file), 0
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		var key string
		var want Slot
		if _, err := fmt.Sscanf(lines.Text(), "%q %d", &key, &want); err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		vectors++
		if got := SlotOf([]byte(key)); got != want {
			t.Errorf("slot of %q is %d, want %d", key, got, want)
		}
	}
	if err := lines.Err(); err != nil || vectors < 50 {
		t.Fatalf("read %d vectors, %v", vectors, err)
	}
}

func TestHashTags(t *testing.T) {
	for _, tc := range []struct{ key, hashed string }{
		{"{user1000}.following", "user1000"},
		{"foo{bar}{zap}", "bar"},
		{"foo{{bar}}zap", "{bar"},
		{"}{tag}", "tag"},
		{"x{\x00}y", "\x00"},
	} {
		if got, want := SlotOfString(tc.key), Slot(bitwiseCRC16(tc.hashed)%SlotCount); got != want {
			t.Errorf("%q: slot %d, want that of %q, %d", tc.key, got, tc.hashed, want)
		}
	}
	for _, whole := range []string{"foo{}{bar}", "{}", "foo{bar", "foo}bar", "}{", "", "\x00\xff"} {
		if got, want := SlotOfString(whole), Slot(bitwiseCRC16(whole)%SlotCount); got != want {
			t.Errorf("%q: slot %d, want that of the whole key, %d", whole, got, want)
		}
	}
}

// bitwiseCRC16 is the definition, one bit at a time.
func bitwiseCRC16(data string) uint16 {
	var crc uint16
	for _, b := range []byte(data) {
		for bit := 7; bit >= 0; bit-- {
			carry := crc>>15 != uint16(b>>bit&1)
			crc <<= 1
			if carry {
				crc ^= 0x1021
			}
		}
	}
	return crc
}

// referenceSlot follows the wording of the specification, in another way than SlotOf does.
func referenceSlot(key string) Slot {
	if _, after, found := strings.Cut(key, "{"); found {
		if tag, _, closed := strings.Cut(after, "}"); closed && tag != "" {
			key = tag
		}
	}
	return Slot(bitwiseCRC16(key) % SlotCount)
}

func FuzzSlotOf(f *testing.F) {
	for _, seed := range []string{"", "a", "{a}", "{}{a}", "a{b", "a}b{c}", "\xff{\x00}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, key []byte) {
		got, want := SlotOf(key), referenceSlot(string(key))
		if got != want || got >= SlotCount || SlotOfString(string(key)) != want {
			t.Errorf("slot of %q is %d, want %d", key, got, want)
		}
	})
}

func TestSlotOfAllocatesNothing(t *testing.T) {
	key := strings.Repeat("k", 300) + "{" + strings.Repeat("t", 300) + "}"
	bytes := []byte(key)
	if n := testing.AllocsPerRun(100, func() { SlotOf(bytes); SlotOfString(key) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestRange(t *testing.T) {
	for _, tc := range []struct {
		r    Range
		text string
		size int
	}{
		{Range{0, 5461}, "0-5460", 5461},
		{Range{7, 8}, "7", 1},
		{Range{16383, SlotCount}, "16383", 1},
		{Range{0, SlotCount}, "0-16383", SlotCount},
		{Range{5, 5}, "empty", 0},
	} {
		if tc.r.String() != tc.text || tc.r.Len() != tc.size {
			t.Errorf("%v: %q of %d slots, want %q of %d", tc.r, tc.r.String(), tc.r.Len(), tc.text, tc.size)
		}
	}
	r := Range{3, 5}
	for slot, want := range map[Slot]bool{2: false, 3: true, 4: true, 5: false} {
		if r.Contains(slot) != want {
			t.Errorf("%v contains %d: %v", r, slot, !want)
		}
	}
}

func BenchmarkSlotOf(b *testing.B) {
	for _, size := range []int{16, 256} {
		key := []byte(strings.Repeat("k", size))
		b.Run(fmt.Sprintf("key=%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				SlotOf(key)
			}
		})
	}
}
