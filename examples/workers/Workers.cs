using System;
using System.Collections.Generic;

/// <summary>As workers.py, a table of strings in .NET.</summary>
static class Workers
{
    static readonly Dictionary<int, string> table = new Dictionary<int, string>();

    static void Main()
    {
        for (int number = 0; number < 100000; number++)
            table[number] = "{\"id\": " + number + ", \"name\": \"item " + number + "\"}";
        Console.WriteLine("ready");
        var random = new Random();
        long read = 0;
        string line;
        while ((line = Console.ReadLine()) != null)
        {
            int count = int.Parse(line);
            for (int request = 0; request < count; request++)
                read += table[random.Next(table.Count)].Split('"').Length;
            Console.WriteLine("served");
        }
        Console.Error.WriteLine(read);
    }
}
