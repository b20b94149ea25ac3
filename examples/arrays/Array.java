class Array {
    static final double[] table = new double[4 << 20];

    public static void main(String[] words) throws InterruptedException {
        for (int n = 0; n < table.length; n++)
            table[n] = Math.sqrt(n);
        System.out.println("ready");
        Thread.sleep(Long.MAX_VALUE);
    }
}
