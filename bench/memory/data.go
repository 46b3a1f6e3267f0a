package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/ostraka-db/ostraka/store"
)

const keyBytes = 16

// keyOf writes key number i into key and returns its slot. Numbers are scattered, so that neither memory order nor key
// order follows the order of use.
func keyOf(key []byte, i int) (slot uint16) {
	scattered := uint64(i) * 0x9e3779b97f4a7c15
	binary.BigEndian.PutUint64(key, scattered)
	binary.BigEndian.PutUint64(key[8:], uint64(i))
	return uint16(scattered >> 50)
}

// fillValue makes bytes that don't compress and differ from key to key: RDB files would be smaller otherwise.
func fillValue(value []byte, i int) {
	x := uint64(i)*0xd1342543de82ef95 + 1
	for len(value) > 0 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], x)
		value = value[copy(value, word[:]):]
	}
}

// residentBytes reads a process's resident memory from /proc.
func residentBytes(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
			return kib * 1024, err
		}
	}
	return 0, fmt.Errorf("no VmRSS of process %d", pid)
}

// A snapshot here is only what the builder needs: for each slot a header, then its items.
//
//	header  slot uint16, 0 uint16, items uint32
//	item    key length, value length uint32, version, expires at uint64, key, value

func writeSlot(out *bufio.Writer, v *store.View, slot uint16, items *[]byte) error {
	count := uint32(0)
	b := append((*items)[:0], 0, 0, 0, 0, 0, 0, 0, 0)
	err := v.Slot(slot, func(i store.Item) error {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(i.Key)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(i.Value)))
		b = binary.LittleEndian.AppendUint64(b, uint64(i.Version))
		b = binary.LittleEndian.AppendUint64(b, uint64(i.ExpiresAt))
		b = append(append(b, i.Key...), i.Value...)
		count++
		return nil
	})
	if err != nil {
		return err
	}
	binary.LittleEndian.PutUint16(b, slot)
	binary.LittleEndian.PutUint32(b[4:], count)
	*items = b
	_, err = out.Write(b)
	return err
}

func readSnapshot(in *bufio.Reader) (*store.Store, error) {
	b := store.NewBuilder(store.MaxLimits())
	var header [24]byte
	var data []byte
	highest := store.Version(0)
	for {
		if _, err := io.ReadFull(in, header[:8]); err == io.EOF {
			return b.Finish(highest, 0)
		} else if err != nil {
			return nil, err
		}
		slot, count := binary.LittleEndian.Uint16(header[:]), binary.LittleEndian.Uint32(header[4:])
		b.Own(slot)
		for range count {
			if _, err := io.ReadFull(in, header[:]); err != nil {
				return nil, err
			}
			keyLen, valueLen := int(binary.LittleEndian.Uint32(header[:])), int(binary.LittleEndian.Uint32(header[4:]))
			if need := keyLen + valueLen; cap(data) < need {
				data = make([]byte, need)
			}
			if _, err := io.ReadFull(in, data[:keyLen+valueLen]); err != nil {
				return nil, err
			}
			item := store.Item{
				Key: data[:keyLen], Value: data[keyLen : keyLen+valueLen],
				Version: store.Version(binary.LittleEndian.Uint64(header[8:])), ExpiresAt: store.Time(binary.LittleEndian.Uint64(header[16:])),
			}
			highest = max(highest, item.Version)
			if err := b.Put(slot, item); err != nil {
				return nil, err
			}
		}
	}
}
