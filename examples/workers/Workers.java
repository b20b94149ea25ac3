import java.util.HashMap;
import java.util.Map;
import java.util.Random;
import java.util.Scanner;

/** As workers.py, a table of strings in Java. */
class Workers {
    static final Map<Integer, String> table = new HashMap<>();

    public static void main(String[] words) {
        for (int number = 0; number < 100_000; number++)
            table.put(number, "{\"id\": " + number + ", \"name\": \"item " + number + "\"}");
        System.out.println("ready");
        Random random = new Random();
        Scanner requests = new Scanner(System.in);
        long read = 0;
        while (requests.hasNextLine()) {
            int count = Integer.parseInt(requests.nextLine());
            for (int request = 0; request < count; request++)
                read += table.get(random.nextInt(table.size())).split("\"").length;
            System.out.println("served");
        }
        System.err.println(read);
    }
}
