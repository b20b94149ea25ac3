package main

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	const count = 4 << 20
	memory, err := syscall.Mmap(-1, 0, 8*count, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		panic(err)
	}
	table := unsafe.Slice((*float64)(unsafe.Pointer(&memory[0])), count)
	for n := range table {
		table[n] = math.Sqrt(float64(n))
	}
	fmt.Println(merge(memory))
	time.Sleep(time.Hour)
}

// merge shares the pages where the kernel says by which number that is asked for.
func merge(memory []byte) string {
	text, err := os.ReadFile("/sys/kernel/mm/sksm/advice")
	if err != nil {
		return "this kernel does not merge"
	}
	advice, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err == nil {
		err = syscall.Madvise(memory, advice)
	}
	if err != nil {
		return err.Error()
	}
	return "merged"
}
